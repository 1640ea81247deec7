"""Run directories made by code, in the exact format of lm-eval 0.4.13 and of our receipts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.board import board
from leaderboard.board.cell import Cell
from leaderboard.ingest import ingest
from tests.leaderboard.app.driving import chromium_page, serving

DATE = "2026-01-02T03-04-05.678901"


def sha(text: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Task:
    """One task's samples: per-document values of its metrics (the first is primary), and what surrounds them."""

    values: Mapping[str, Sequence[Any]]
    scores: Mapping[str, float] = field(default_factory=dict)
    log_likelihoods: Sequence[float] | None = None
    output_type: str = "multiple_choice"
    filter: str = "none"
    version: float = 1.0
    shots: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    generation: Mapping[str, Any] | None = None
    first_document: int = 0
    fields: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    of: int | None = None
    greedy: bool = False
    """Whether the responses say that an answer was greedy where its `acc` is 1, as lm-eval's do."""

    @property
    def count(self) -> int:
        return len(next(iter(self.values.values())))

    def score(self, metric: str) -> float:
        return self.scores[metric] if metric in self.scores else sum(self.values[metric]) / self.count

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [self._line(name, i) for i in range(self.count)]

    def _line(self, name: str, i: int) -> dict[str, Any]:
        number = i + self.first_document
        doc = {"question": f"{name} {number}?"} | {key: values[i] for key, values in self.fields.items()}
        likelihood = (
            self.log_likelihoods[i]
            if self.log_likelihoods is not None
            else -float(next(iter(self.values.values()))[i] is True) - i
        )
        flag = str(self.greedy and self.values["acc"][i] == 1.0)
        prompt = f"{doc['question']} with {self.shots} examples"
        return {
            "doc_id": i,
            "doc": doc,
            "target": "yes",
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": " yes"}},
            "resps": [[[str(likelihood), flag]]],
            "filtered_resps": [[str(likelihood), flag]],
            "filter": self.filter,
            "metrics": list(self.values),
            "doc_hash": sha(json.dumps(doc, indent=2)),
            "prompt_hash": sha(prompt),
            "target_hash": sha("yes"),
        } | {metric: values[i] for metric, values in self.values.items()}


def results_json(tasks: Mapping[str, Task], *, model: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What lm-eval writes as results_*.json, cut down to the keys that mean something."""

    def row(name: str, task: Task) -> dict[str, Any]:
        facts = {"name": name, "alias": name, "sample_len": task.count}
        for metric in task.values:
            facts |= {f"{metric},{task.filter}": task.score(metric), f"{metric}_stderr,{task.filter}": "N/A"}
        return facts

    def settings(name: str, task: Task) -> dict[str, Any]:
        metrics = [
            {"metric": metric, "higher_is_better": task.higher_is_better.get(metric, True)} for metric in task.values
        ]
        found: dict[str, Any] = {
            "task": name,
            "output_type": task.output_type,
            "num_fewshot": task.shots,
            "metric_list": metrics,
        }
        return (
            found
            | {"generation_kwargs": task.generation, "metadata": {"version": task.version, **task.metadata}}
            | dict(task.config)
        )

    return {
        "results": {name: row(name, task) for name, task in tasks.items()},
        "group_subtasks": {},
        "configs": {name: settings(name, task) for name, task in tasks.items()},
        "versions": {name: task.version for name, task in tasks.items()},
        "n-shot": {name: task.shots for name, task in tasks.items()},
        "higher_is_better": {
            n: {m: task.higher_is_better.get(m, True) for m in task.values} for n, task in tasks.items()
        },
        "n-samples": {
            name: {"original": task.of or task.count, "effective": task.count} for name, task in tasks.items()
        },
        "config": (
            {
                "model": "hf",
                "model_args": {"pretrained": model},
                "model_num_parameters": 1000,
                "model_dtype": "torch.float32",
                "model_revision": "main",
                "model_sha": "",
                "batch_size": 1,
                "device": "cpu",
                "use_cache": None,
            }
            | dict(config)
        ),
        "git_hash": None,
        "date": 1767323045.5,
        "pretty_env_info": "PyTorch version: 2.13.0+cpu\nIs debug build: False",
        "transformers_version": "5.23.0",
        "lm_eval_version": "0.4.13",
        "task_hashes": {},
        "model_source": "hf",
        "model_name": model,
        "system_instruction_sha": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": "1.5",
    }


def receipt_json(recipe: str, tasks: Mapping[str, Task], *, model: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt of format 1; `changes` replaces top-level keys."""
    edited = recipe != "baseline"
    matrix = {
        "step": 0,
        "method": "truncate_svd",
        "name": "layers.0.up.weight",
        "part": None,
        "role": "up_proj",
        "layer": 0,
        "shape": [8, 4],
        "rank_before": 4,
        "rank_after": 2,
        "energy_kept": 0.9,
        "relative_error": 0.3,
        "digest_before": sha("m"),
        "digest_after": sha(recipe),
        "seconds": 0.1,
        "bias_shift": False,
        "parameters_before": 32,
        "parameters_after": 24,
        "fallback": None,
        "stored": "factors",
        "decomposition": "gram_fp32",
        "excess_error": 2e-7,
    }
    return {
        "format": 1,
        "status": "complete",
        "failure": None,
        "spec_id": sha(f"{model}{recipe}{sorted(tasks)}"),
        "settings_id": sha("settings"),
        "variant_id": sha(f"{model}{recipe}"),
        "recipe_id": sha(recipe),
        "command": ["lm_eval", "run", "--recipe", recipe],
        "started": "2026-01-02T03:04:05+00:00" if not edited else "2026-01-02T03:05:05+00:00",
        "finished": "2026-01-02T03:06:05+00:00",
        "seconds": {"load": 0.5, "edit": 0.1, "evaluate": 2.0},
        "model": {
            "backend": "hf",
            "name": model,
            "pretrained": model,
            "revision": "main",
            "dtype": "float32",
            "device": "cpu",
            "model_type": "llama",
            "identity": sha(model),
            "parameters": 1000,
            "model_args": {},
        },
        "recipe": {
            "name": recipe.split(":")[0],
            "label": recipe,
            "summary": "A summary.",
            "source": "arXiv:0000.00000",
            "control": None,
            "control_of": None,
            "resolved": {"steps": []},
        },
        "weights": {"digest_before": sha("weights"), "digest_after": sha(f"weights{recipe if edited else ''}")},
        "matrices": [matrix] if edited else [],
        "totals": {
            "parameters_before": 1000,
            "parameters_after": 992 if edited else 1000,
            "bytes_before": 4000,
            "bytes_after": 3968,
            "flops_per_token_before": 2000,
            "flops_per_token_after": 1984,
            "matrices_edited": int(edited),
        },
        "calibration": [],
        "warnings": [],
        "seeds": {"fewshot": 1234},
        "settings": {"limit": None},
        "tasks": {name: {} for name in tasks},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    } | dict(changes)


class Fabricator:
    """Writes run directories and plain lm-eval output under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self,
        recipe: str,
        tasks: Mapping[str, Task],
        *,
        model: str = "tiny",
        folder: str | None = None,
        config: Mapping[str, Any] = {},
        **changes: Any,
    ) -> Path:
        """A run directory of ours. Keyword arguments replace top-level keys of the receipt."""
        path = self.root / model / (folder or f"{recipe.replace(':', '_')}-0123456789")
        receipt = receipt_json(recipe, tasks, model=model, changes=changes)
        path.mkdir(parents=True)
        if receipt["status"] == "complete":
            self._outputs(path, tasks, model, config)
        (path / "receipt.json").write_text(json.dumps(receipt))
        return path

    def failed(self, recipe: str, tasks: Mapping[str, Task], **changes: Any) -> Path:
        """A run that has no result."""
        failure = {"kind": "non_finite_weight", "reason": "3 weights are NaN", "where": "layers.0.up.weight"}
        return self.run(recipe, tasks, status="failed", failure=failure, **changes)

    def plain(
        self,
        tasks: Mapping[str, Task],
        *,
        model: str = "tiny",
        samples: bool = True,
        folder: str = "plain",
        config: Mapping[str, Any] = {},
    ) -> Path:
        """What lm_eval itself leaves behind; returns the results file."""
        path = self.root / folder / model
        path.mkdir(parents=True)
        self._outputs(path, tasks if samples else {}, model, config)
        file = path / f"results_{DATE}.json"
        file.write_text(json.dumps(results_json(tasks, model=model, config=config)))
        return file

    def _outputs(self, path: Path, tasks: Mapping[str, Task], model: str, config: Mapping[str, Any]) -> None:
        for name, task in tasks.items():
            lines = [json.dumps(line) for line in task.lines(name)]
            (path / f"samples_{name}_{DATE}.jsonl").write_text("\n".join(lines) + "\n")
        (path / f"results_{DATE}.json").write_text(json.dumps(results_json(tasks, model=model, config=config)))

    def board(self, **options: Any) -> list[Cell]:
        """The board of everything under the folder, by way of a store in memory; nothing may be rejected."""
        report = ingest(self.root, None)
        assert report.store is not None and not report.rejected, report.rejected
        try:
            return board(report.store, **options)
        finally:
            report.store.connection.close()


def binary(count: int, hits: int, *, lost: int = 0, gained: int = 0) -> tuple[list[float], list[float]]:
    """Baseline and recipe answers: `hits` right at first, then `lost` of them wrong and `gained` others right."""
    before = [1.0] * hits + [0.0] * (count - hits)
    after = [0.0] * lost + [1.0] * (hits - lost) + [1.0] * gained + [0.0] * (count - hits - gained)
    return before, after


def likelihoods(count: int, seed: int) -> list[float]:
    """Distinct log-likelihoods that depend on the seed."""
    return [-1.0 - 0.01 * i - 1e-6 * seed for i in range(count)]


@dataclass
class Kit:
    """The helpers above, for tests to take as one fixture."""

    Task: type[Task] = Task
    Fabricator: type[Fabricator] = Fabricator
    sha = staticmethod(sha)
    binary = staticmethod(binary)
    likelihoods = staticmethod(likelihoods)
    date: str = DATE

    def pair(
        self, count: int, hits: int, *, lost: int = 0, gained: int = 0, metric: str = "acc", **options: Any
    ) -> tuple[Task, Task]:
        """A baseline's and a recipe's task with a given number of flips."""
        before, after = binary(count, hits, lost=lost, gained=gained)
        return (
            Task({metric: before}, log_likelihoods=likelihoods(count, 0), **options),
            Task({metric: after}, log_likelihoods=likelihoods(count, 1), **options),
        )


@pytest.fixture(scope="session")
def kit() -> Kit:
    """Helpers to make run directories."""
    return Kit()


@pytest.fixture
def made(tmp_path: Path) -> Fabricator:
    """A fabricator for a fresh folder."""
    return Fabricator(tmp_path / "results")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Fabricator:
    """A fabricator for a folder that tests of a module take copies of."""
    return Fabricator(tmp_path_factory.mktemp("made") / "results")


@pytest.fixture
def database(made: Any) -> Path:
    """Where the store will be."""
    made.root.mkdir(parents=True, exist_ok=True)
    return made.root / "leaderboard.duckdb"


@pytest.fixture
def address(database: Path) -> Iterator[str]:
    """A running server over the database of the test's file."""
    with serving(database) as url:
        yield url


@pytest.fixture
def page() -> Iterator[Any]:
    """A browser page."""
    with chromium_page() as opened:
        yield opened
