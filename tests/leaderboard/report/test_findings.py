"""The findings page: what counts as a gain, how sure the first sentence is, and that both forms say the same."""

from __future__ import annotations

from typing import Any

import pytest

from leaderboard.board.cell import Cell, changed
from leaderboard.compare.clipping import Clipping
from leaderboard.compare.needs import TooFew
from leaderboard.report.findings import AuditedRecipe, PageLine, answer, finding_rows, findings_page
from leaderboard.report.findings_forms import as_markdown_page, as_terminal_page
from leaderboard.statistics import share_limit

LASER = AuditedRecipe("laser", "From the weights alone")
SVD_LLM = AuditedRecipe("svd-llm:calibration.samples=96", "Compression")
COMMANDS = {
    "From the weights alone": "lm_eval run --model hf --model_args pretrained=m --tasks piqa --recipe laser",
    "Compression": "lm_eval run --model hf --model_args pretrained=m --tasks piqa --recipe svd-llm",
}


def cell(recipe: str, task: str, verdict: str, **more: Any) -> Cell:
    """A judged cell whose interval agrees with its verdict."""
    point = {"better": 0.1, "worse": -0.1, "collapsed": -0.5}.get(verdict, 0.01)
    reach = 0.05 if verdict != "undecided" else 0.2
    known: dict[str, Any] = {"improvement": point, "delta": point, "low": point - reach, "high": point + reach}
    known |= {"q_value": 0.01, "comparisons": 10, "weights": f"weights of {recipe}", "parameters_kept": 0.8}
    scores = (100, 0.5, 0.5 + point)
    return Cell("m", recipe, f"run of {recipe}", task, "acc", "none", *scores, verdict, **(known | more))


def controlled(whole: Cell, verdict: str, **more: Any) -> Cell:
    pair = changed(whole, verdict=verdict, control="random-subspace", comparisons=4, **more)
    return changed(whole, against_controls=(pair,))


BASE = cell("baseline", "piqa", "baseline", weights="unedited", improvement=None, delta=None, low=None, high=None)
GAIN = controlled(cell("laser", "facts", "better"), "better")
AS_CONTROL = controlled(cell("laser", "facts", "better"), "same")
UNPROVEN = controlled(cell("laser", "facts", "better"), "undecided")
UNCOMPARED = controlled(cell("laser", "facts", "better"), "incomparable", delta=None)
UNDECIDED = cell("laser", "piqa", "undecided", documents_needed=900, needed_for="difference")
SAME, WORSE = cell("laser", "text", "same"), cell("laser", "text", "worse")


@pytest.mark.parametrize(
    ("cells", "begins", "says"),
    [
        ([GAIN, UNDECIDED, WORSE], "Yes, on these samples: laser on facts (+0.100 [+0.050, +0.150])", ""),
        ([AS_CONTROL, WORSE], "No, as far as these samples go: ", "but no better than its control: laser on facts"),
        ([cell("laser", "facts", "better"), SAME], "No, as far as these samples go", "but no control was run"),
        ([UNDECIDED, WORSE], "Nothing was shown to be gained: 1 of 2 comparisons", "so that a gain may be there"),
        ([UNPROVEN, WORSE], "Nothing was shown to be gained: ", "but not shown to beat its control: laser on facts"),
        (
            [UNCOMPARED, WORSE],
            "Nothing was shown to be gained: ",
            "but not comparable with its control: laser on facts",
        ),
        ([SAME], "No, as far as these samples go: the only comparison with the unedited model is decided.", ""),
        ([AS_CONTROL, UNDECIDED], "Nothing was shown to be gained: better than", "1 of 2 comparisons"),
        ([SAME, WORSE], "No, as far as these samples go: all 2 comparisons", "are decided"),
        ([], "Nothing can be said", ""),
        ([cell("laser", "facts", "incomparable")], "Nothing can be said", ""),
    ],
)
def test_the_answer_is_as_strong_as_the_verdicts(cells: list[Cell], begins: str, says: str) -> None:
    said = answer(cells)
    assert said.startswith(begins) and says in said and said.endswith(".") and said.count("..") == 0


def test_a_gain_is_never_claimed_without_a_control_that_it_beats() -> None:
    for verdict in ("undecided", "same", "worse", "collapsed"):
        assert not answer([controlled(cell("laser", "facts", "better"), verdict)]).startswith("Yes")


def test_being_ahead_of_a_collapsed_control_is_told_to_say_little() -> None:
    assert "its control collapsed" in answer(
        [controlled(cell("laser", "facts", "better"), "better", against_collapsed=True)]
    )


def test_a_gain_of_a_model_that_collapsed_elsewhere_is_told_so() -> None:
    said = answer([changed(GAIN, collapsed_on=("text", "bias"))])
    assert said.startswith("Yes") and "; the model collapsed on text and bias" in said


def test_a_gain_that_saying_one_thing_gets_too_is_told_so() -> None:
    said = answer([changed(GAIN, chance=0.622, beats_chance=False)])
    assert said.startswith("Yes") and "; not shown to beat chance, 0.622" in said
    assert "chance" not in answer([changed(GAIN, chance=0.25, beats_chance=True)]) + answer([GAIN])


def test_no_is_never_said_where_a_comparison_or_a_recipe_has_no_result() -> None:
    """What failed or cannot be compared may have been the gain."""
    unmade = cell("laser", "facts", "incomparable")
    said = {
        answer([WORSE], failed=2): "nothing is known of 2 recipes without a result.",
        answer([WORSE, unmade]): "nothing is known of 1 comparison.",
        answer([UNDECIDED, unmade], failed=1): "nothing is known of 1 comparison and 1 recipe without a result.",
    }
    for told, end in said.items():
        assert told.startswith("Nothing was shown to be gained: ") and told.endswith(end), told
    failed = [LASER._replace(failure="out of memory"), SVD_LLM]
    assert "1 recipe without a result" in findings_page("m", failed, [BASE, WORSE], COMMANDS)[1].text


def page(cells: list[Cell]) -> list[Any]:
    return findings_page("m", [LASER, SVD_LLM], cells, COMMANDS)


def test_the_page_has_what_helps_breaks_costs_and_is_undecided() -> None:
    shown = as_terminal_page(
        page([BASE, UNDECIDED, GAIN, cell("svd-llm:calibration.samples=96", "text", "worse")]), 200
    )
    assert shown.startswith("Is there anything to gain here?\nYes, on these samples: laser on facts")
    assert "What breaks: svd-llm on text." in shown
    assert "10 comparisons with the unedited model and 4 with controls (Benjamini-Hochberg" in shown
    assert "  laser: 80.0% of the parameters are kept\n    helps      facts: acc 0.5000 -> 0.6000" in shown
    assert "undecided  piqa +0.010 [-0.190, +0.210]\n" in shown
    assert "asked as   svd-llm:calibration.samples=96\n    breaks     text" in shown
    assert all(command in shown for command in COMMANDS.values())


def test_the_improvement_to_a_best_value_in_the_middle_is_the_plain_one() -> None:
    """As of any other metric, and marked where its interval is of clipped differences and does not hold it."""
    clipping = Clipping(0.3, 1, 0, 0.1, plain_improvement=-0.469)
    facts = {"best_value": 0.0, "baseline_score": 0.797, "score": 1.266, "delta": 0.469, "low": 0.1, "high": 0.3}
    facts |= {"improvement_low": -0.3, "improvement_high": -0.1}
    bias = changed(cell("laser", "bias", "worse"), improvement=-0.205, clipping=clipping, **facts)
    shown = as_terminal_page(page([BASE, bias]), 200)
    assert "improvement -0.469 [-0.300, -0.100] clipped" in shown
    assert "Clipped: interval and verdict" in shown
    nothing = changed(bias, verdict="undecided", says_nothing=True)
    assert "undecided  bias -0.469, too few documents" in as_terminal_page(page([BASE, nothing]), 200)


def test_too_few_documents_is_said_once_for_the_page() -> None:
    """However many recipes and tasks: five documents of each were a paragraph of twenty lines a recipe."""
    facts: dict[str, Any] = {"too_few": TooFew(10), "says_nothing": True, "subset": "first 5 of 60 documents", "n": 5}
    labels = ("laser", SVD_LLM.label)
    few = [changed(cell(label, task, "undecided"), **facts) for label in labels for task in ("a", "b", "c")]
    shown = as_terminal_page(page([BASE, *few]), 400)
    assert shown.count("undecided  a +0.010; b +0.010; c +0.010\n") == 2
    told = "On a, b and c 5 documents show no difference, whatever the answers: a test takes at least 10.\n"
    assert shown.count(told) == 1 and shown.count("too few documents") == 0
    assert shown.count("without --limit there is more of them") == 1


@pytest.mark.parametrize("needed", [(900, 2400), (900, 900), (None, None)])
def test_what_samples_cannot_show_is_said_with_the_size_of_what_they_can(needed: tuple[int | None, ...]) -> None:
    """A sample that was scored whole has no more documents, so that no number of them is advised to be scored."""
    laser, svd = (
        changed(cell(label, "facts", "undecided"), detectable=size, documents_needed=number, needed_for="within")
        for label, size, number in zip(("laser", SVD_LLM.label), (0.123, 0.0711), needed, strict=True)
    )
    shown = as_terminal_page(page([BASE, laser, svd]), 400)
    assert "can show, four times in five: a difference of 0.071 on facts (100 documents). Smaller ones may" in shown
    span = {(900, 2400): "900 to 2,400", (900, 900): "900"}.get(needed)  # type: ignore[call-overload]
    assert ("takes about" in shown) == (span is not None) and (span is None or f"about {span} documents" in shown)
    assert shown.count("The samples have no more than these: the commands in full, below,") == 1
    assert "would decide" not in shown and "--limit" not in shown


def test_a_sample_too_small_to_rule_out_collapses_shows_no_gain() -> None:
    """None of 40 documents got far worse, but 7 % of all may; of 72 fewer than 5 %."""
    cells = {
        n: changed(UNDECIDED, n=n, detectable=3.0, clipping=Clipping(1.0, 0, 9, share_limit(0, n), 5.0))
        for n in (40, 72)
    }
    assert "On piqa no gain can be shown, since that takes 59 independent documents." in as_terminal_page(
        page([BASE, cells[40]]), 200
    )
    assert "no gain can be shown" not in (shown := as_terminal_page(page([BASE, cells[72]]), 200))
    assert "a difference of 3 on piqa (72 documents)" in shown
    ruined = changed(cells[72], clipping=Clipping(1.0, 2, 0, share_limit(2, 72), 5.0))
    assert "(2 documents got far worse)" in as_terminal_page(page([BASE, ruined]), 200)


def test_where_nothing_is_undecided_nothing_is_said_of_what_samples_show() -> None:
    assert "samples can show" not in as_terminal_page(page([BASE, GAIN, WORSE]), 200)


def test_what_shows_nothing_stands_in_one_line() -> None:
    more = [cell("laser", "sums", "undecided", documents_needed=500), SAME, cell("laser", "bias", "same")]
    shown = as_terminal_page(page([BASE, UNDECIDED, *more]), 400)
    assert shown.count("undecided  ") == 1 and shown.count("    same  ") == 2
    assert "undecided  piqa +0.010 [-0.190, +0.210]; sums +0.010" in shown


def test_a_recipe_that_edited_nothing_counts_nowhere() -> None:
    unedited = cell("laser", "piqa", "undecided", weights="unedited")
    shown = as_terminal_page(page([BASE, unedited]), 200)
    assert "nothing was edited" in shown and "Nothing can be said" in shown and "undecided  " not in shown
    assert finding_rows([LASER], [BASE, unedited]) == []


def test_failures_have_a_reason_and_a_row() -> None:
    failed = AuditedRecipe("laser", "From the weights alone", failure="no such matrix")
    shown = as_terminal_page(findings_page("m", [failed], [BASE], COMMANDS), 100)
    assert "failed     no such matrix" in shown and "nothing was edited" not in shown
    (row,) = finding_rows([failed], [BASE])
    assert (row["finding"], row["notes"]) == ("failed", ["no such matrix"])


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal(width: int) -> None:
    label = f"svd-llm:calibration.task=[{','.join(['audit_commonsense'] * 8)}]"
    notes = ("worse by acc, but better by another metric, which is a long story that nobody wants to read twice",)
    cells = [BASE, UNDECIDED, GAIN, cell(label, "text", "worse", notes=notes)]
    recipes = [LASER, SVD_LLM._replace(label=label)]
    lines = as_terminal_page(findings_page("m", recipes, cells, COMMANDS), width).splitlines()
    assert max(map(len, lines)) <= width
    # a command is the same once its broken lines are joined
    joined = " ".join("\n".join(lines).replace("\\\n", " ").split())
    assert all(command in joined for command in COMMANDS.values())


def test_markdown_says_the_same_and_runs_no_markup() -> None:
    cells = [BASE, GAIN, cell("svd-llm:calibration.samples=96", "<b>t</b>`", "worse")]
    text = as_markdown_page(page(cells))
    assert text.startswith("## Is there anything to gain here?\n\nYes, on these samples")
    assert "<b>" not in text and "\\<b\\>" in text and "\n- breaks: " in text
    assert "```sh\nlm_eval run" in text
    bare = text.replace("\\", "")
    assert all(line.text in bare for line in page(cells) if line.form != "command")


def test_rows_are_data() -> None:
    gain, open_one = finding_rows([LASER], [BASE, UNDECIDED, GAIN])
    assert (gain["finding"], gain["against_control"], gain["improvement"]) == ("beats", ["better"], 0.1)
    assert (open_one["finding"], open_one["documents_needed"], open_one["kind"]) == ("undecided", 900, LASER.kind)
    assert list(gain) == list(open_one)


def test_a_recipe_in_full_is_broken_between_its_settings() -> None:
    label = "eigenprune:calibration.task=[real_wikidata,real_arc_easy],calibration.samples=96,calibration.seed=1"
    lines = as_terminal_page([PageLine("finding", label, "asked as")], 80).splitlines()
    assert max(map(len, lines)) <= 80 and "".join(line[15:] for line in lines) == label
    assert all(line[-1] in ",:=." for line in lines[:-1])
