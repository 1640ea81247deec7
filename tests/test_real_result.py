"""The result on a real model: its sweep holds every recipe, and its page is made of the stored figures."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

import harness_ext
from harness_ext.recipe.recipe import parse_recipe, shipped_names
from harness_ext.sweeps.sweep_file import read_sweep
from results.real import asked, page, real
from results.real import figures as real_figures


def test_every_recipe_is_in_the_sweep_at_its_default_and_at_its_budgets() -> None:
    found = [parse_recipe(written) for written in asked.recipes()]
    assert len({recipe.recipe_id for recipe in found}) == len(found)
    counts = Counter(recipe.name for recipe in found)
    left_out = {name for name in shipped_names() if parse_recipe(name).group == "controls"} - {"identity"}
    assert counts.keys() == set(shipped_names()) - left_out
    assert (counts["laser"], counts["eigenprune"], counts["svd"], counts["svd-llm"], counts["sfsd"]) == (1, 3, 3, 6, 9)


def test_the_sweep_that_is_shown_is_the_one_that_is_run(repository: Path) -> None:
    stored = json.loads(real.SWEEP.read_text(encoding="utf-8"))
    made = asked.sweep_file(stored["tasks"])
    assert stored == made
    assert read_sweep(real.SWEEP).name == "real"


def test_the_pages_are_made_of_the_stored_figures(repository: Path) -> None:
    assert (asked.HERE / "README.md").read_text(encoding="utf-8") == page.render(real_figures.stored())
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert readme == page.in_readme(readme, real_figures.stored())


def test_the_pictures_are_drawn_of_the_stored_figures(repository: Path) -> None:
    """All of them, wherever they were measured; a recipe's earlier settings are in neither."""
    figures = real_figures.stored()
    for name, picture in page.drawn(figures, datetime.now(timezone.utc)).items():
        shown = re.findall("<title>(.*?)</title>|<desc>(.*?)</desc>", picture)
        stored = (asked.HERE / f"{name}.svg").read_text(encoding="utf-8")
        assert re.findall("<title>(.*?)</title>|<desc>(.*?)</desc>", stored) == shown and len(shown) > 60
    own = {one.recipe for one in figures if one.seed == 0 and not one.control}
    assert {title.partition(": ")[0] for title, _ in shown[2:]} <= own


def test_a_picture_knows_in_which_direction_a_metric_is_good() -> None:
    losses = [
        replace(one, outcomes={"t": replace(one.outcomes["t"], metric="loss", higher_is_better=False)})
        for one in [_baseline(), *_figures("svd", ("worse", "better"))]
    ]
    assert "svd: −0.100 [−0.200, 0.000], worse" in page.drawn(losses, datetime.now(timezone.utc))["improvement"]


def _outcome(score: float, *said: object, unedited: float = 0.4) -> object:
    return real_figures.Outcome(score, unedited, *said, metric="acc", higher_is_better=True, n=100)


def _figures(recipe: str, *said: tuple[str, str]) -> list[object]:
    """A figure a seed, of a verdict and of one against the control."""
    return [
        real_figures.Figure(recipe, seed, False, recipe, 0.8, 1.0, {"t": _outcome(0.5, 0.0, 0.2, *words)})
        for seed, words in enumerate(said)
    ]


def _baseline(score: float = 0.4) -> object:
    outcome = _outcome(score, None, None, "baseline", None, unedited=score)
    return real_figures.Figure("baseline", 0, False, None, 1.0, 0.0, {"t": outcome})


def test_what_only_some_seeds_say_is_not_said_of_a_recipe() -> None:
    better = ("better", "better")
    figures = [
        _baseline(),
        *_figures("both", better, better),
        *_figures("some", better, ("undecided", "better")),
        *_figures("few", better, ("undecided", "same")),
        *_figures("alike", better, ("better", "same")),
        *_figures("harm", ("worse", "worse"), ("collapsed", "worse")),
    ]
    change = "+0.100 (+0.100 to +0.100)"
    assert page.summary(page.by_recipe(figures)) == (
        f"- `t` (0.400 unedited): better, beating its control: `both` {change}; better, not shown to beat its control:"
        f" `alike` {change}, no control measured; better from some seeds only, beating its control: `some` {change};"
        f" better from some seeds only, not shown to beat its control: `few` {change}, no control measured; 1 of 5 are"
        " worse or collapsed."
    )
    beating_in_vain = _figures("less bad", ("undecided", "better"))
    assert page.summary(page.by_recipe([_baseline(), *beating_in_vain])) == (
        "- `t` (0.400 unedited): nothing is better and beats its control; 0 of 1 are worse or collapsed."
    )


def test_a_control_that_gains_more_is_shown_beside_its_recipe() -> None:
    (own,) = _figures("chance", ("better", "worse"))
    control = replace(own, control=True, outcomes={"t": _outcome(0.6, 0.1, 0.3, "better", None)})
    rows = page.by_recipe([_baseline(), own, control])
    assert page.summary(rows) == (
        "- `t` (0.400 unedited): nothing is better and beats its control; better, its control more so: `chance` +0.100"
        " [+0.000, +0.200], control +0.200 [+0.100, +0.300]; 0 of 1 are worse or collapsed."
    )
    assert page.table(rows).endswith("| +0.100 [+0.000, +0.200] better; control +0.200 better |")


def test_the_short_table_knows_in_which_direction_metrics_are_good_and_adds_none_of_two_kinds() -> None:
    def figure(name: str, accuracy: float, perplexity: float | None) -> object:
        outcomes = {"t": _outcome(accuracy, 0, 0.2, "worse", None)}
        if perplexity is not None:
            other = _outcome(perplexity, 0, 2, "worse", None, unedited=44.0)
            outcomes["texts"] = replace(other, metric="perplexity", higher_is_better=False)
        return real_figures.Figure(name, 0, False, "", 0.8, 1.0, outcomes)

    baseline = replace(_baseline(), outcomes=figure("baseline", 0.4, 44.0).outcomes)
    found = [
        figure("ruined", 0.3, 9e4),
        figure("mild", 0.39, 45.0),
        figure("half", 0.38, None),
        figure("bad", 0.36, 90.0),
    ]
    shown = page.in_short(page.by_recipe([baseline, *found])).splitlines()[2:]
    assert [line.split("`")[1] for line in shown] == ["mild", "bad", "half"]


def test_the_short_table_stays_short() -> None:
    helping = [
        real_figures.Figure(f"gain{place}", 0, False, "", 0.9, 1.0, {"t": _outcome(0.5 + place / 100, 0, 0.2, *words)})
        for place, words in enumerate([("better", "better")] * 12 + [("worse", "better")] * 12)
    ]
    small = [replace(one, recipe=f"{one.recipe}-small", kept=0.8) for one in helping]
    shown = page.in_short(page.by_recipe([_baseline(), *helping, *small])).splitlines()[2:]
    assert len(shown) == page.GAINS + page.SMALLER and shown[0].startswith("| `gain11` |")
    assert all("worse" in line for line in shown[page.GAINS :]) and shown[-1].startswith(
        f"| `gain{24 - page.SMALLER}-small` |"
    )


def test_a_small_model_that_gains_is_among_the_small_ones_where_better_gains_leave_it_no_room() -> None:
    gains = [
        real_figures.Figure(f"gain{place}", 0, False, "", 0.8, 1.0, {"t": _outcome(0.5 + place / 100, 0, 0.2, *words)})
        for place, words in enumerate([("better", "better")] * 9 + [("worse", "better")])
    ]
    shown = page.in_short(page.by_recipe([_baseline(), *gains])).splitlines()[2:]
    assert [line.split("`")[1] for line in shown] == [f"gain{place}" for place in (8, 7, 6, 5, 4, 3, 2, 9, 1, 0)]


def test_the_short_table_says_what_each_seed_says() -> None:
    first, second = _figures("several", ("better", "better"), ("better", "better"))
    second = replace(second, outcomes={"t": _outcome(0.6, 0.1, 0.3, "better", "better")})
    alone = _figures("alone", ("better", "better"))
    shown = page.in_short(page.by_recipe([_baseline(), first, second, *alone])).splitlines()[2:]
    assert [line.rpartition(" | ")[2] for line in shown] == [
        "+0.150 (+0.100 to +0.200) better |",
        "+0.100 [+0.000, +0.200] better |",
    ]


def test_a_limit_shows_on_which_side_of_zero_it_lies() -> None:
    (figure,) = _figures("near", ("better", "better"))
    near = replace(figure, outcomes={"t": _outcome(0.5, 0.00047, -0.0004, "better", "better")})
    assert page.by_recipe([near])[0].shown("t") == "+0.100 [+0.0005, -0.0004]"


def test_every_stored_figure_is_of_a_recipe_of_today() -> None:
    today = {parse_recipe(one).fingerprint for one in asked.recipes()}
    assert {one.recipe for one in real_figures.stored() if one.recipe_id not in today} == {"baseline"}


def test_tasks_without_items_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "HERE", tmp_path)
    assert asked.asked_tasks([]) == list(asked.OF_THE_HUB) and asked.asked_tasks(["piqa"]) == ["piqa"]
    with pytest.raises(asked.UnknownTask, match="no task real_facts here; there are arc_easy, .*: make real ITEMS=DIR"):
        asked.asked_tasks(["piqa", "real_facts"])
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "real_facts.yaml").touch()
    assert asked.asked_tasks(["real_facts"]) == asked.asked_tasks([]) == ["real_facts"]


def test_figures_of_another_machine_stay_with_its_unedited_model() -> None:
    def measured(recipe: str, seed: int, unedited: float, task: str = "t") -> object:
        recipe_id = parse_recipe(asked.written(recipe, seed)).fingerprint
        outcome = _outcome(0.5, 0.0, 0.2, "same", None, unedited=unedited)
        return real_figures.Figure(recipe, seed, False, recipe_id, 0.8, 1.0, {task: outcome})

    gone = _figures("gone", ("same", "same"))
    earlier = [_baseline(), measured("svd", 0, 0.4), measured("svd-llm", 1, 0.4), *gone]
    new = [_baseline(0.38), measured("svd", 0, 0.38), measured("svd-llm", 0, 0.38)]
    both = [earlier[0], *new, earlier[2]]
    assert real_figures.merged([], new) == new
    assert real_figures.merged(earlier, new) == both  # measured again: the new one; recipes unknown today: out
    assert real_figures.merged(both, new) == both and real_figures.merged(both, [new[0], earlier[2]]) == both
    rows = page.by_recipe(both)
    assert page.table(rows).splitlines()[2].endswith("| 0.400 or 0.380 |")
    assert page.in_short(rows).splitlines()[0].endswith("`t`: 0.400 or 0.380 |")
    (learned,) = (row for row in rows if row.recipe == "svd-llm")
    assert learned.shown("t") == "+0.110 (+0.100 to +0.120)", "each from the unedited model of its own machine"
    assert real_figures.merged(earlier[:2], new) == new, "a machine that nothing is left of has no unedited model"
    assert real_figures.left_out(earlier, both) == ["gone"] and real_figures.left_out(earlier, earlier) == []
    pictures = page.drawn([*both[:3], replace(both[3], kept=0.7)], datetime.now(timezone.utc))
    assert "svd: +0.120" in pictures["improvement"] and "svd-llm: +0.120" in pictures["improvement"]
    assert "baseline: score 0.0" in pictures["size"], "differences alone stand beside each other"
    with pytest.raises(
        real_figures.OtherTasks, match="the runs are of u, and the 4 figures in figures.json of t: .*--anew"
    ):
        real_figures.merged(earlier, [measured("svd", 0, 0.4, "u")])


@pytest.mark.parametrize("recipe", ["svd", "svd-llm:keep.param_fraction=0.9"])
@pytest.mark.parametrize("seed", [0, 2])
def test_a_recipe_as_it_is_written_with_its_seed_is_parted_again(recipe: str, seed: int) -> None:
    assert asked.parted(asked.written(recipe, seed)) == (recipe, seed)
    assert asked.parted(asked.written(recipe, seed) + "+random-subspace") == (recipe, seed)


@pytest.mark.slow
def test_figures_are_of_recipes_and_their_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = ["svd", "svd-llm:calibration.samples=8", "svd-llm:calibration.samples=8,calibration.seed=1"]
    settings = {"limit": 16, "batch_size": 16, "device": "cpu", "output_path": str(tmp_path)}
    harness_ext.run(
        model_args="pretrained=demo", tasks="int_mult", recipes=recipes, controls="random-subspace", **settings
    )
    figures = real_figures.measured(tmp_path)
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
    assert of_svd.outcomes["int_mult"].beats and "| `svd` | 75% |" in page.table(page.by_recipe(figures))
    page.summary(page.by_recipe(figures))
    for path in tmp_path.glob("demo/*/receipt.json"):
        if json.loads(path.read_text())["recipe"]["label"] == "svd":
            found = json.loads(path.read_text())
            path.write_text(json.dumps(found | {"recipe_id": "of before"}))
    assert {one.recipe for one in real_figures.measured(tmp_path)} == {"baseline", learned}, (
        "nor are runs of other settings"
    )
    monkeypatch.setattr(parse_recipe("svd").__class__, "revisions", {"truncate_svd": 2})
    assert [one.recipe for one in real_figures.measured(tmp_path)] == [], "runs by another revision are no figures"
