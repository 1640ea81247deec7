"""The prompts in tasks/README.md: `python tests/tasks/prompts.py` prints them, `--write` puts them into the file.

They are the requests that lm-eval builds for the first document of each task, whose items are the invented ones in
`fixtures`, so that no data set's content stands in the README.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).resolve().parent / "fixtures"
README = Path(__file__).resolve().parents[2] / "tasks" / "README.md"
START, END = (
    "<!-- prompts: written by `python tests/tasks/prompts.py --write`, checked by a test -->\n",
    "<!-- end of prompts -->",
)
TASKS = (
    "int_mult",
    "int_sum",
    "int_mult_clean",
    "int_sum_clean",
    "laser_suite",
    "eigenpruning_cb",
    "eigenpruning_copa",
    "eigenpruning_rte",
    "wikitext2_128",
    "bias_suite",
    "audit_facts",
    "audit_arithmetic",
    "audit_commonsense",
    "audit_text",
)
SHORT = 400


def prompts() -> str:
    """The prompts of all tasks as an indented block."""
    from harness_ext.demo import demo_path
    from harness_ext.lm_eval_adapter.task_index import task_manager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = task_manager(metadata={"data_dir": str(FIXTURES), "tokenizer": str(demo_path())}).load(list(TASKS))[
        "tasks"
    ]
    return "".join(f"    {line}\n" for name, task in sorted(loaded.items()) for line in _lines(name, task))


def _lines(name: str, task: Any) -> Iterator[str]:
    """The first document, or, where documents are of several kinds, the first of each."""
    first = {document.get("kind"): document for document in reversed(list(task.eval_docs))}
    for kind, document in reversed(first.items()):
        yield f"{name}, {kind}" if kind else name
        built = task.construct_requests(document, task.fewshot_context(document, 0), metadata=(name, 0, 1))
        yield from _requests(built if isinstance(built, list) else [built])


def _requests(requests: list[Any]) -> Iterator[str]:
    for text, of_text in groupby(requests, key=lambda request: request.args[0]):
        group = list(of_text)
        yield f"  prompt     {_shown(text)}"
        yield from (
            f"  generated  up to {request.args[1]['max_gen_toks']} tokens"
            for request in group
            if request.request_type == "generate_until"
        )
        yield "  scored     " + " | ".join(
            _shown(request.args[1]) for request in group if request.request_type == "loglikelihood"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHORT else f"{text[:SHORT]} ...")


def written(text: str) -> str:
    """The README with its block replaced."""
    head, rest = text.split(START)
    return f"{head}{START}{prompts()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if "--write" in sys.argv:
        README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(prompts(), end="")
