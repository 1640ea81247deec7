"""Calibration sees exactly the prompts that are scored, and never a document that is: tasks of each kind, made here,
with and without examples, instructions and chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_ext.calibration.documents import CalibrationSet

CHAT = (
    "{% for message in messages %}{{ message.role }} : {{ message.content }} <eos> {% endfor %}{% if"
    " add_generation_prompt %}assistant : {% endif %}"
)
# The examples of a prompt are the first ones, so that they do not depend on the order in which prompts are built.
COMMON = {
    "dataset_path": "json",
    "training_split": "train",
    "test_split": "test",
    "fewshot_split": "train",
    "fewshot_config": {"sampler": "first_n"},
    "metadata": {"version": 1.0},
}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{first}} {{second}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{right}}",
    },
    "text_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{first}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{options[right]}}",
        "target_delimiter": " w30 ",
    },
    # One ending after either of two beginnings, the right one named by its place.
    "two_beginnings": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{right}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{second}}",
    },
    "continuation": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{first}} {{second}}",
        "doc_to_target": " {{options[right]}}",
        "metric_list": [{"metric": "acc"}],
    },
    "generation": {
        "output_type": "generate_until",
        "doc_to_text": "w31 {{first}}",
        "doc_to_target": "{{options[right]}}",
        "generation_kwargs": {"until": ["w9"], "max_gen_toks": 2},
    },
}


def documents(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "first": f"w{number % 20} w{number // 20}",
            "second": f"w{7 * number % 30}",
            "options": [f"w{20 + number % 9}", f"w{30 + number % 9}"],
            "right": number % 2,
        }
        for number in range(start, start + count)
    ]


@pytest.fixture
def run_tasks(lm_eval, make_model, tmp_path: Path) -> Callable[..., Any]:
    """Run recipes on a tiny model and tasks of a test's own: `run_tasks(["choice"], "--recipe", "svd")`."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    splits = {"train": documents(0, 12), "test": documents(100, 16)}
    # Two documents to learn from are also scored.
    splits["train"] += splits["test"][:2]
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(folder / f"{name}.jsonl") for name in splits}
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, **COMMON, "dataset_kwargs": {"data_files": files}, **task})
        )
    model = make_model("llama")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))

    def run(tasks: list[str], *arguments: object) -> Any:
        return lm_eval(
            "run",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={model}",
            "--include_path",
            folder,
            "--tasks",
            ",".join(tasks),
            "--device",
            "cpu",
            "--batch_size",
            8,
            *arguments,
        )

    return run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[CalibrationSet]:
    """The documents that recipes learn from, as they are drawn."""
    from harness_ext.editing import pipeline

    sets: list[CalibrationSet] = []
    real = pipeline._documents

    def draw(context, source, applied):
        found = real(context, source, applied)
        sets.extend(each for _, each in applied.calibration)
        return found

    monkeypatch.setattr(pipeline, "_documents", draw)
    return sets


def asked(tmp_path: Path, label: str, task: str) -> dict[str, dict[str, Any]]:
    """The samples that lm-eval logged, by the document's hash."""
    (path,) = tmp_path.glob(f"results/*/{label}-*/samples_{task}_*.jsonl")
    return {sample["doc_hash"]: sample for sample in map(json.loads, path.read_text().splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="plain"),
        pytest.param(["--num_fewshot", "2", "--system_instruction", "w1 w2 w3"], id="examples"),
        pytest.param(
            [
                "--num_fewshot",
                "2",
                "--apply_chat_template",
                "--fewshot_as_multiturn",
                "true",
                "--system_instruction",
                "w5",
            ],
            id="chat",
        ),
    ],
)
def test_what_is_learned_from_is_what_would_have_been_scored(
    run_tasks, drawn: list[CalibrationSet], tmp_path: Path, settings: list[str]
) -> None:
    """Score every document once; then take some of them out of the score to learn from, and compare the prompts."""
    names = list(TASKS)
    ran = run_tasks(names, "--recipe", "baseline", *settings)
    assert ran.code == 0, ran.err
    scored = {name: asked(tmp_path, "baseline", name) for name in names}
    for path in tmp_path.glob("results/*/baseline-*"):
        path.rename(tmp_path / path.name)
    ran = run_tasks(names, "--recipe", "fwsvd:calibration.split=test,calibration.samples=10", *settings)
    assert ran.code == 0, ran.err
    assert {each.task: len(each.documents) for each in drawn} == dict.fromkeys(names, 2)
    for each in drawn:
        for document in each.documents:
            sample = scored[each.task][document.doc_hash]
            requests = [(request["arg_0"], request["arg_1"]) for request in sample["arguments"].values()]
            if each.task == "generation":
                assert (
                    document.context == requests[0][0]
                    and document.answer == f" {sample['doc']['options'][sample['doc']['right']]}"
                )
            else:
                assert (document.context, document.answer) == requests[
                    sample["doc"]["right"] if "multiple_choice" in TASKS[each.task]["output_type"] else 0
                ]
            assert not settings or settings[settings.index("--system_instruction") + 1] in document.context
            assert document.doc_hash not in asked(tmp_path, "fwsvd*", each.task)


@pytest.mark.slow
def test_documents_that_are_scored_are_left_out_and_counted(run_tasks, tmp_path: Path) -> None:
    assert run_tasks(["choice"], "--recipe", "wanda:calibration.samples=12").code == 0
    (path,) = tmp_path.glob("results/*/wanda*/receipt.json")
    (used,) = json.loads(path.read_text())["calibration"]
    assert (used["samples"], used["split"], used["task"]) == (12, "train", "choice") and used[
        "left_out_because_scored"
    ] <= 2
    assert not set(used["documents"]) & set(asked(tmp_path, "wanda*", "choice")) and len(set(used["documents"])) == 12
    ran = run_tasks(["choice"], "--recipe", "wanda:calibration.samples=13")
    assert ran.code == 2
    assert (
        "calibration: 13 documents of 'choice' were asked for, and its train split has 12 (2 more are also scored, and"
        " so left out); lower calibration.samples" in ran.err
    )
