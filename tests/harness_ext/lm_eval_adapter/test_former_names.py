"""Names that tasks and programs of others hold go on working."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FORMER = {
    "harness_ext.lm": ("backend", ["RecipeLM"]),
    "harness_ext.task_index": ("task_index", ["task_manager"]),
    "harness_ext.task_requests": ("task_types", ["OpenAnswer", "RankedAnswer", "RequestsTask", "TokenWindow"]),
    "harness_ext.task_data": ("task_data", ["TRAINING_LIMIT", "Row", "Source"]),
}
TASK = """
task: answers
class: !function harness_ext.task_requests.RankedAnswer
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{items}"}}}}
test_split: test
output_type: loglikelihood
doc_to_text: question
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.mark.parametrize("former", FORMER)
def test_a_former_module_gives_the_same_objects(former: str) -> None:
    module, names = FORMER[former]
    now = importlib.import_module(f"harness_ext.lm_eval_adapter.{module}")
    before = importlib.import_module(former)
    assert set(before.__all__) == set(names)
    assert all(getattr(before, name) is getattr(now, name) for name in names)


@pytest.mark.slow
def test_a_task_file_that_names_a_former_class_loads(tmp_path: Path) -> None:
    from harness_ext.lm_eval_adapter.task_types import RankedAnswer
    from harness_ext.task_index import task_manager

    items = tmp_path / "items.jsonl"
    items.write_text('{"question": "1 + 1 =", "answer": "2"}\n', encoding="utf-8")
    (tmp_path / "answers.yaml").write_text(TASK.format(items=items), encoding="utf-8")
    task = task_manager(include_path=tmp_path).load(["answers"])["tasks"]["answers"]
    assert type(task) is RankedAnswer
    (document,) = task.eval_docs
    task.ranks = True
    requests = task.construct_requests(document, "1 + 1 =")
    assert [request.request_type for request in requests] == ["loglikelihood", "answer_rank"]
    assert "class" not in task.dump_config() and "harness_ext" not in str(task.dump_config())
