"""`lm_eval ingest` says which harness, or which service, results are from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.leaderboard.readers.test_foreign_inspect import write_json
from tests.leaderboard.readers.test_foreign_lighteval import write_lighteval


def write_service(path: Path) -> None:
    """What `lm_eval run --model local-completions` leaves behind."""
    path.mkdir(parents=True)
    (path / "results_2026-01-02T03-04-05.json").write_text(
        json.dumps(
            {
                "results": {"gsm8k": {"exact_match,none": 0.5}},
                "configs": {"gsm8k": {}},
                "config": {"model": "local-completions", "model_args": "model=served,base_url=http://localhost:8000"},
            }
        )
    )


@pytest.mark.slow
def test_harnesses_and_services_are_named(lm_eval: Callable, tmp_path: Path) -> None:
    write_lighteval(tmp_path / "lighteval", [1, 0, 1])
    for number in range(5):
        eval_log = {"task": "sums", "model": f"hf/org/m{number}", "packages": {"inspect_ai": "0.3.285"}}
        write_json(tmp_path / "inspect" / f"{number}.json", ["C", "I"], eval=eval_log)
    write_service(tmp_path / "served")
    asked = "ingest", tmp_path / "lighteval", tmp_path / "inspect", tmp_path / "served", "--database", tmp_path / "b.db"
    named = [
        "5 of them are of inspect 0.3.285: org/m0, org/m1, org/m2 and 2 more",
        "1 of them is of lighteval: org/tiny",
        "1 of them is of lm-eval by the service local-completions: served",
    ]
    for counts in ("7 added, 0 known already", "0 added, 7 known already"):
        ran = lm_eval(*asked)
        assert ran.code == 0, ran.err
        first, *lines = ran.out.splitlines()
        assert first.startswith(counts) and lines == named


def test_nothing_is_named_where_all_is_lm_evals_own(lm_eval: Callable, tmp_path: Path) -> None:
    write_service(tmp_path / "served")
    file = next((tmp_path / "served").iterdir())
    file.write_text(file.read_text().replace("local-completions", "hf").replace("model=served", "pretrained=org/m"))
    ran = lm_eval("ingest", tmp_path / "served", "--database", tmp_path / "b.db")
    assert ran.code == 0 and ran.out.splitlines() == [
        f"1 added, 0 known already, 0 rejected; database: {tmp_path / 'b.db'}"
    ]
