"""Names that have a task in common are asked together: it is built and scored once, and every group sums it up."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import Task

import harness_ext
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.task_index import task_manager
from harness_ext.lm_eval_adapter.task_loading import together
from tests.tasks.conftest import GROUPS


class Unread(Task):
    """A task with the configuration of its file, and no documents."""

    def __init__(self, config: dict[str, Any], **_: Any) -> None:
        from lm_eval.config.task import TaskConfig

        known = set(TaskConfig.__dataclass_fields__)
        self._config = TaskConfig(**{key: value for key, value in config.items() if key in known})

    doc_to_text = doc_to_target = construct_requests = process_results = aggregation = higher_is_better = None
    has_training_docs = has_validation_docs = has_test_docs = None


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a name as lm-eval does, but for what would need data."""
    from lm_eval.tasks import _factory

    read = _factory.load_yaml

    def unresolved(path: Any, **_: Any) -> dict[str, Any]:
        """A task file without its functions, of which some ask the hub for their metrics."""
        return {key: value for key, value in read(path, resolve_func=False).items() if key != "class"}

    monkeypatch.setattr(_factory, "ConfigurableTask", Unread)
    monkeypatch.setattr(_factory, "load_yaml", unresolved)
    manager = task_manager()
    return lambda name: manager.load([name])


def test_every_pair_of_our_groups_can_be_asked_together(load: Any) -> None:
    alone = {name: load(name) for name in GROUPS}
    leaves = {name: set(part["tasks"]) for name, part in alone.items()}
    shared = [(one, other) for one, other in combinations(GROUPS, 2) if leaves[one] & leaves[other]]
    assert {("collateral", "audit"), ("bias_suite", "audit"), ("sfsd_suite", "lowrankarena")} <= set(shared)
    for one, other in combinations(GROUPS, 2):
        both = together({name: alone[name] for name in (one, other)})
        assert set(both["tasks"]) == leaves[one] | leaves[other]
        for name in (one, other):
            found = {task.task_name: task for task in both["groups"][name].get_all_tasks()}
            assert set(found) == leaves[name] and all(both["tasks"][task] is own for task, own in found.items())


def test_a_task_of_two_forms_is_refused(load: Any) -> None:
    """Our group gives five examples, lm-eval's none of its own."""
    with pytest.raises(UserError, match=r"task mmlu_\w+ is asked in one way by mmlu_math and in another by mmlu: ask"):
        together({name: load(name) for name in ("mmlu_math", "mmlu")})


@pytest.mark.slow
def test_what_two_groups_share_is_scored_once(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "group: own\ntask: [pronoun_bias, int_sum]\naggregate_metric_list: [{metric: log_odds, weight_by_size: true}]\n"
    )
    result = harness_ext.run(
        model_args={"pretrained": "demo"},
        tasks=["audit", "own", "pronoun_bias"],
        recipes=["identity"],
        controls=[],
        limit=4,
        include_path=str(tmp_path),
        output_path=str(tmp_path / "runs"),
        device="cpu",
    )
    tasks = [cell.task for cell in result.cells if cell.recipe == "baseline"]
    assert tasks.count("pronoun_bias") == 1 and {"int_sum", "audit_facts"} <= set(tasks)
    (results,) = (tmp_path / "runs").rglob("baseline*/results_*.json")
    written = json.loads(results.read_text())
    assert written["group_subtasks"] == {
        "audit": ["audit_facts", "audit_arithmetic", "audit_commonsense", "audit_text", "pronoun_bias"],
        "own": ["pronoun_bias", "int_sum"],
    }
    assert written["results"]["own"]["log_odds,none"] == written["results"]["pronoun_bias"]["log_odds,none"]
