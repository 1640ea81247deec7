"""The result on a real model: its sweep holds every recipe, and its page is made of the stored figures."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import pytest

import harness_ext
from harness_ext.recipe.recipe import parse_recipe, shipped_names
from harness_ext.sweeps.sweep_file import read_sweep


@pytest.fixture(scope="module")
def real(repository: Path) -> ModuleType:
    """The script beside the result."""
    spec = importlib.util.spec_from_file_location("real_result", repository / "results" / "real" / "real.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["real_result"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_is_in_the_sweep_at_its_default_and_at_its_budgets(real: ModuleType) -> None:
    found = [parse_recipe(written) for written in real.recipes()]
    assert len({recipe.recipe_id for recipe in found}) == len(found)
    counts = Counter(recipe.name for recipe in found)
    left_out = {name for name in shipped_names() if parse_recipe(name).group == "controls"} - {"identity"}
    assert counts.keys() == set(shipped_names()) - left_out
    assert (counts["laser"], counts["eigenprune"], counts["svd"], counts["svd-llm"], counts["sfsd"]) == (1, 3, 3, 6, 9)


def test_the_sweep_that_is_shown_is_the_one_that_is_run(real: ModuleType, repository: Path) -> None:
    stored = json.loads(real.SWEEP.read_text(encoding="utf-8"))
    made = real.sweep_file(stored["tasks"])
    assert stored == made
    assert read_sweep(real.SWEEP).name == "real"


def test_the_pages_are_made_of_the_stored_figures(real: ModuleType, repository: Path) -> None:
    assert (real.HERE / "README.md").read_text(encoding="utf-8") == real.render(real.stored())
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert readme == real.in_readme(readme, real.stored())


def test_the_pictures_are_drawn_of_the_stored_figures(real: ModuleType, repository: Path) -> None:
    """All of them, wherever they were measured; a recipe's earlier settings are in neither."""
    figures = real.stored()
    for name, picture in real.drawn(figures, datetime.now(timezone.utc)).items():
        shown = re.findall("<title>(.*?)</title>|<desc>(.*?)</desc>", picture)
        stored = (real.HERE / f"{name}.svg").read_text(encoding="utf-8")
        assert re.findall("<title>(.*?)</title>|<desc>(.*?)</desc>", stored) == shown and len(shown) > 60
    own = {one.recipe for one in figures if one.seed == 0 and not one.control}
    assert {title.partition(": ")[0] for title, _ in shown[2:]} <= own


def test_a_picture_knows_in_which_direction_a_metric_is_good(real: ModuleType) -> None:
    losses = [
        real.replace(one, outcomes={"t": real.replace(one.outcomes["t"], metric="loss", higher_is_better=False)})
        for one in [_baseline(real), *_figures(real, "svd", ("worse", "better"))]
    ]
    assert "svd: −0.100 [−0.200, 0.000], worse" in real.drawn(losses, datetime.now(timezone.utc))["improvement"]


def _outcome(real: ModuleType, score: float, *said: object, unedited: float = 0.4) -> object:
    return real.Outcome(score, unedited, *said, metric="acc", higher_is_better=True, n=100)


def _figures(real: ModuleType, recipe: str, *said: tuple[str, str]) -> list[object]:
    """A figure a seed, of a verdict and of one against the control."""
    return [
        real.Figure(recipe, seed, False, recipe, 0.8, 1.0, {"t": _outcome(real, 0.5, 0.0, 0.2, *words)})
        for seed, words in enumerate(said)
    ]


def _baseline(real: ModuleType, score: float = 0.4) -> object:
    outcome = _outcome(real, score, None, None, "baseline", None, unedited=score)
    return real.Figure("baseline", 0, False, None, 1.0, 0.0, {"t": outcome})


def test_what_only_some_seeds_say_is_not_said_of_a_recipe(real: ModuleType) -> None:
    better = ("better", "better")
    figures = [
        _baseline(real),
        *_figures(real, "both", better, better),
        *_figures(real, "some", better, ("undecided", "better")),
        *_figures(real, "few", better, ("undecided", "same")),
        *_figures(real, "alike", better, ("better", "same")),
        *_figures(real, "harm", ("worse", "worse"), ("collapsed", "worse")),
    ]
    change = "+0.100 (+0.100 to +0.100)"
    assert real.summary(real.by_recipe(figures)) == (
        f"- `t` (0.400 unedited): better and beating its control: `both` {change}; better, as its control may be:"
        f" `alike` {change}; better from some seeds only, always beating its control: `some` {change}; better from some"
        f" seeds only, as its control may be: `few` {change}; 1 of 5 are worse or collapsed."
    )
    beating_in_vain = _figures(real, "less bad", ("undecided", "better"))
    assert real.summary(real.by_recipe([_baseline(real), *beating_in_vain])) == (
        "- `t` (0.400 unedited): nothing is better and beats its control; 0 of 1 are worse or collapsed."
    )


def test_the_short_table_stays_short(real: ModuleType) -> None:
    helping = [
        real.Figure(f"gain{place}", 0, False, "", 0.9, 1.0, {"t": _outcome(real, 0.5 + place / 100, 0, 0.2, *words)})
        for place, words in enumerate([("better", "better")] * 12 + [("worse", "better")] * 12)
    ]
    small = [real.replace(one, recipe=f"{one.recipe}-small", kept=0.8) for one in helping]
    shown = real.in_short(real.by_recipe([_baseline(real), *helping, *small])).splitlines()[2:]
    assert len(shown) == real.GAINS + real.SMALLER and shown[0].startswith("| `gain11` |")
    assert all("worse" in line for line in shown[real.GAINS :]) and shown[-1].startswith(
        f"| `gain{24 - real.SMALLER}-small` |"
    )


def test_a_small_model_that_gains_is_among_the_small_ones_where_better_gains_leave_it_no_room(real: ModuleType) -> None:
    gains = [
        real.Figure(f"gain{place}", 0, False, "", 0.8, 1.0, {"t": _outcome(real, 0.5 + place / 100, 0, 0.2, *words)})
        for place, words in enumerate([("better", "better")] * 9 + [("worse", "better")])
    ]
    shown = real.in_short(real.by_recipe([_baseline(real), *gains])).splitlines()[2:]
    assert [line.split("`")[1] for line in shown] == [f"gain{place}" for place in (8, 7, 6, 5, 4, 3, 2, 9, 1, 0)]


def test_the_short_table_says_what_each_seed_says(real: ModuleType) -> None:
    first, second = _figures(real, "several", ("better", "better"), ("better", "better"))
    second = real.replace(second, outcomes={"t": _outcome(real, 0.6, 0.1, 0.3, "better", "better")})
    alone = _figures(real, "alone", ("better", "better"))
    shown = real.in_short(real.by_recipe([_baseline(real), first, second, *alone])).splitlines()[2:]
    assert [line.rpartition(" | ")[2] for line in shown] == [
        "+0.150 (+0.100 to +0.200) better |",
        "+0.100 [+0.000, +0.200] better |",
    ]


def test_a_limit_shows_on_which_side_of_zero_it_lies(real: ModuleType) -> None:
    (figure,) = _figures(real, "near", ("better", "better"))
    near = real.replace(figure, outcomes={"t": _outcome(real, 0.5, 0.00047, -0.0004, "better", "better")})
    assert real.by_recipe([near])[0].shown("t") == "+0.100 [+0.0005, -0.0004]"


def test_every_stored_figure_is_of_a_recipe_of_today(real: ModuleType) -> None:
    asked = {real.identity_of(parse_recipe(one)) for one in real.recipes()}
    assert {one.recipe for one in real.stored() if one.recipe_id not in asked} == {"baseline"}


def test_tasks_without_items_are_told(real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "HERE", tmp_path)
    assert real.asked_tasks([]) == list(real.OF_THE_HUB) and real.asked_tasks(["piqa"]) == ["piqa"]
    with pytest.raises(real.UnknownTask, match="no task real_facts here; there are arc_easy, .*: make real ITEMS=DIR"):
        real.asked_tasks(["piqa", "real_facts"])
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "real_facts.yaml").touch()
    assert real.asked_tasks(["real_facts"]) == real.asked_tasks([]) == ["real_facts"]


def test_figures_of_another_machine_stay_with_its_unedited_model(real: ModuleType) -> None:
    def measured(recipe: str, seed: int, unedited: float, task: str = "t") -> object:
        recipe_id = real.identity_of(parse_recipe(real.written(recipe, seed)))
        outcome = _outcome(real, 0.5, 0.0, 0.2, "same", None, unedited=unedited)
        return real.Figure(recipe, seed, False, recipe_id, 0.8, 1.0, {task: outcome})

    gone = _figures(real, "gone", ("same", "same"))
    earlier = [_baseline(real), measured("svd", 0, 0.4), measured("svd-llm", 1, 0.4), *gone]
    new = [_baseline(real, 0.38), measured("svd", 0, 0.38), measured("svd-llm", 0, 0.38)]
    both = [earlier[0], *new, earlier[2]]
    assert real.merged([], new) == new
    assert real.merged(earlier, new) == both  # measured again: the new one; recipes unknown today: out
    assert real.merged(both, new) == both and real.merged(both, [new[0], earlier[2]]) == both
    rows = real.by_recipe(both)
    assert real.table(rows).splitlines()[2].endswith("| 0.400 or 0.380 |")
    assert real.in_short(rows).splitlines()[0].endswith("`t`: 0.400 or 0.380 |")
    (learned,) = (row for row in rows if row.recipe == "svd-llm")
    assert learned.shown("t") == "+0.110 (+0.100 to +0.120)", "each from the unedited model of its own machine"
    assert real.merged(earlier[:2], new) == new, "a machine that nothing is left of has no unedited model"
    assert real.left_out(earlier, both) == ["gone"] and real.left_out(earlier, earlier) == []
    pictures = real.drawn([*both[:3], real.replace(both[3], kept=0.7)], datetime.now(timezone.utc))
    assert "svd: +0.120" in pictures["improvement"] and "svd-llm: +0.120" in pictures["improvement"]
    assert "baseline: score 0.0" in pictures["size"], "differences alone stand beside each other"
    with pytest.raises(real.OtherTasks, match="the runs are of u, and the 4 figures in figures.json of t: .*--anew"):
        real.merged(earlier, [measured("svd", 0, 0.4, "u")])


@pytest.mark.parametrize("recipe", ["svd", "svd-llm:keep.param_fraction=0.9"])
@pytest.mark.parametrize("seed", [0, 2])
def test_a_recipe_as_it_is_written_with_its_seed_is_parted_again(real: ModuleType, recipe: str, seed: int) -> None:
    assert real._parted(real.written(recipe, seed)) == (recipe, seed)
    assert real._parted(real.written(recipe, seed) + "+random-subspace") == (recipe, seed)


@pytest.mark.slow
def test_figures_are_of_recipes_and_their_seeds(
    real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = ["svd", "svd-llm:calibration.samples=8", "svd-llm:calibration.samples=8,calibration.seed=1"]
    settings = {"limit": 16, "batch_size": 16, "device": "cpu", "output_path": str(tmp_path)}
    harness_ext.run(
        model_args="pretrained=demo", tasks="int_mult", recipes=recipes, controls="random-subspace", **settings
    )
    figures = real.measured(tmp_path)
    learned = "svd-llm:calibration.samples=8"
    # Both seeds ask for the same ranks, and so for the same control, which each has.
    assert [(one.recipe, one.seed, one.control) for one in figures] == [
        ("baseline", 0, False),
        ("svd", 0, False),
        ("svd", 0, True),
        *((learned, seed, control) for seed in (0, 1) for control in (False, True)),
    ]
    of_svd = figures[1]
    receipts = [json.loads(path.read_text()) for path in tmp_path.glob("demo/*/receipt.json")]
    (receipt,) = (one for one in receipts if one["recipe"]["label"] == "svd")
    totals = receipt["totals"]
    assert of_svd.kept == round(totals["parameters_after"] / totals["parameters_before"], 3) < 1
    assert of_svd.outcomes["int_mult"].beats and "| `svd` | 75% |" in real.table(real.by_recipe(figures))
    real.summary(real.by_recipe(figures))
    for path in tmp_path.glob("demo/*/receipt.json"):
        if json.loads(path.read_text())["recipe"]["label"] == "svd":
            found = json.loads(path.read_text())
            path.write_text(json.dumps(found | {"recipe_id": "of before"}))
    assert {one.recipe for one in real.measured(tmp_path)} == {"baseline", learned}, "nor are runs of other settings"
    monkeypatch.setattr(parse_recipe("svd").__class__, "revisions", {"truncate_svd": 2})
    assert [one.recipe for one in real.measured(tmp_path)] == [], "runs by another revision are no figures"
