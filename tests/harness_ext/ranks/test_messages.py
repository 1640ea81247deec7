"""Messages between two ranks, and what ends one of them ends both."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.harness_ext.ranks.launching import HERE, Ended, ended, two_ranks


@pytest.mark.slow
def test_every_rank_hears_all(tmp_path: Path) -> None:
    codes, said, _ = ended(two_ranks([str(HERE / "messages_in_two_ranks.py"), str(tmp_path)]))
    assert codes == [0, 0] and said.count("all is well") == 2, said


def of(how: str, waiting: str, rank: int, folder: Path) -> Ended:
    processes = two_ranks([str(HERE / "ends_in_two_ranks.py"), how, waiting, str(rank)], {"TMPDIR": str(folder)})
    return ended(processes)


@pytest.mark.slow
def test_only_the_first_prints_and_nothing_is_left(tmp_path: Path) -> None:
    codes, said, _ = of("nothing", "", 0, tmp_path)
    assert codes == [0, 0] and said == "rank 0 prints\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("how", "waiting", "rank", "code", "told"),
    [
        ("mistake", "message", 1, 2, "(rank 1) error: a mistake in one place"),
        pytest.param("kill", "collective", 1, 1, "error: rank 1 of 2 was ended from", marks=pytest.mark.slow),
        pytest.param("kill", "computing", 0, 1, "error: rank 0 of 2 was ended from", marks=pytest.mark.slow),
        pytest.param("mistake", "collective", 0, 2, "error: a mistake in one place", marks=pytest.mark.slow),
        pytest.param("bug", "computing", 1, 1, "KeyError: 'a bug in one place'", marks=pytest.mark.slow),
        pytest.param("runtime", "message", 1, 1, "RuntimeError: an error of the", marks=pytest.mark.slow),
        pytest.param("term", "message", 0, 1, "error: rank 0 of 2 was ended from", marks=pytest.mark.slow),
        pytest.param("exit", "collective", 0, 7, "", marks=pytest.mark.slow),
        pytest.param("both", "", 0, 2, "error: the same mistake", marks=pytest.mark.slow),
    ],
)
def test_what_ends_one_ends_all(how: str, waiting: str, rank: int, code: int, told: str, tmp_path: Path) -> None:
    codes, said, apart = of(how, waiting, rank, tmp_path)
    failed, other = codes[rank], codes[1 - rank]
    assert other == code and apart < 20, (codes, said)
    assert failed == {"kill": -9, "term": 128 + 15}.get(how, code)
    assert said.count(told) == 1 if told else "rror" not in said, said
    assert "Connection" not in said and ("Traceback" in said) == (how in ("bug", "runtime")), said
    assert (tmp_path / f"cleaned-{rank}").exists() == (how not in ("kill", "term"))


OTHER_WEIGHTS = """
name: mine
steps:
  - {method: by_rank, matrices: [mlp]}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("which", "variant"), [("edited", "mine"), ("loaded", "baseline")])
def test_other_weights_in_one_rank_end_all(which: str, variant: str, tmp_path: Path) -> None:
    """By the digests, before anything is scored of them."""
    recipe, results = tmp_path / "mine.yaml", tmp_path / "results"
    recipe.write_text(OTHER_WEIGHTS)
    asked = ["--model", "hf", "--model_args", "pretrained=demo", "--tasks", "int_sum", "--limit", "1"]
    run = ["run", *asked, "--recipe", str(recipe), "--output_path", str(results)]
    codes, said, _ = ended(two_ranks([str(HERE / "weights_in_two_ranks.py"), which, *run]))
    assert codes == [2, 2], (codes, said)
    told = rf"error: {variant}: the processes hold different weights, \S+ in rank 0 and \S+ in rank 1, .*: start"
    assert len(re.findall(told, said)) == 1 and "Traceback" not in said, said
    finished = [path.parent.name.partition("-")[0] for path in results.glob("demo/[!.]*/receipt.json")]
    assert finished == (["baseline"] if which == "edited" else [])
