"""What papers report, beside what was measured here: does the gain come back, and does it beat a control?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import streamlit as st

from leaderboard.app import layout, linked_table, url_state
from leaderboard.app.colours import tinted
from leaderboard.app.download import downloads
from leaderboard.app.menu import RUN
from leaderboard.board.claims import Claim, claims, command_for, is_of_model, why_not_measured
from leaderboard.board.reported import SURE, published
from leaderboard.board.standings import gained
from leaderboard.report.claim_verdict import CLAIM_WORDS
from leaderboard.report.claim_words import judged_claim
from leaderboard.report.words import improvement_limits
from leaderboard.terminal.format import counted, plain

NOT_MEASURED = "not measured"
_CONTROL = {True: "yes", False: "no", None: "no control run"}
_DIFFERENCE = st.column_config.NumberColumn(format="%+.6g")
_SHARE = st.column_config.NumberColumn(format="percent")
_SCORE = st.column_config.NumberColumn(format="%.6g")


def main() -> None:
    """Draw the page."""
    overview = layout.overview_or_stop()
    keys = {key for key, name in overview.value.names.items() if any(is_of_model(entry, name) for entry in published())}
    found = chosen(claims(linked_table.cells_of(keys, overview)))
    states = _filter(st, "States", "state", (*CLAIM_WORDS, NOT_MEASURED))
    st.markdown(sentence(found, [claim for claim in found if claim.cell is not None]))
    wanted = [claim for claim in found if state(claim) in states]
    if found and not wanted:
        st.info(f"No claim of these is {' or '.join(states)}.")
    if measured := [claim for claim in wanted if claim.cell is not None]:
        show_measured(measured)
    # what can be measured here first, in the order of the papers
    missing = sorted(
        (claim for claim in wanted if claim.cell is None), key=lambda claim: command_for(claim.reported) is None
    )
    if missing:
        show_missing(missing)
    st.caption(
        "Numbers of papers are as they are reported, in fractions; they were not measured here, and are part of no"
        " verdict. A run is shown beside a claim where model, task, metric and method agree. **incomparable**: it"
        " has other settings or a part of the documents, or the unedited model scores otherwise. **supported**: the"
        " measured change is within a quarter of the reported one, with its whole interval, and better than its"
        " control. **contradicted**: shown to be worse than that, and no gain. **partly**: a gain, but of another size"
        " or the control has it too; or a cost as reported that the control has too. **undecided**: all else."
    )


def chosen(found: Sequence[Claim]) -> list[Claim]:
    """The claims of the papers, models and methods in the filters."""
    places = st.columns(3)
    papers = _filter(places[0], "Papers", "paper", sorted({claim.reported.paper for claim in found}))
    models = _filter(places[1], "Models", "reported-model", sorted({claim.reported.model for claim in found}))
    methods = _filter(places[2], "Methods", "method", sorted({claim.reported.method for claim in found}))
    return [
        claim
        for claim in found
        if claim.reported.paper in papers and claim.reported.model in models and claim.reported.method in methods
    ]


def state(claim: Claim) -> str:
    """What became of a claim."""
    return NOT_MEASURED if claim.cell is None else judged_claim(claim.reported, claim.cell).word


def _filter(place: Any, label: str, key: str, options: Sequence[str]) -> Sequence[str]:
    return url_state.any_of(place, label, options, key, placeholder=f"All {label.lower()}") or options


def sentence(found: Sequence[Claim], measured: Sequence[Claim]) -> str:
    """The page's question answered in words."""
    entries = len({claim.reported for claim in found})
    of = len({claim.reported for claim in measured})
    if not measured:
        return f"**None** of {counted(entries, 'reported result', 'reported results')} has been run here yet."
    counts = Counter(state(claim) for claim in measured)
    states = ", ".join(f"**{counts[word]}** {word}" for word in CLAIM_WORDS if counts[word])
    return (
        f"**{of}** of {counted(entries, 'reported result', 'reported results')} {'has' if of == 1 else 'have'} been run"
        f" here, by {counted(len(measured), 'run', 'runs')}: {states}."
    )


def show_measured(measured: Sequence[Claim]) -> None:
    """Reported beside measured, a row a run. A ticked row opens it."""
    st.subheader("Measured here", anchor=False)
    rows = [_row(claim) for claim in measured]
    picked = st.dataframe(
        tinted(rows, ["Verdict"]),
        hide_index=True,
        width="stretch",
        placeholder="",
        key=f"measured {linked_table.content_key([claim.cell and claim.cell.run_id for claim in measured])}",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "Kept": _SHARE,
            "Reported improvement": _DIFFERENCE,
            "Improvement": _DIFFERENCE,
            "Low": _DIFFERENCE,
            "High": _DIFFERENCE,
            **dict.fromkeys(("Reported before", "Reported after", "Before", "After"), _SCORE),
        },
    )
    downloads(rows, "claims-measured")
    ticked = [place for place in picked["selection"]["rows"] if place < len(measured)]
    if ticked and (cell := measured[ticked[0]].cell) is not None:
        st.switch_page(RUN.script, query_params={"run": cell.run_id})


def _row(claim: Claim) -> dict[str, Any]:
    cell = claim.cell
    assert cell is not None
    limits = improvement_limits(cell)
    found = judged_claim(claim.reported, cell)
    return {
        **_named(claim),
        "Claim": found.word,
        "Why": found.why,
        **_reported(claim),
        "Before": cell.baseline_score,
        "After": cell.score,
        "Improvement": gained(cell),
        "Low": limits and limits.low,
        "High": limits and limits.high,
        "Verdict": cell.verdict,
        "Reported direction": {True: "yes", False: "no", None: ""}[claim.agrees],
        "Beats its control": _CONTROL[cell.beats_controls],
        "n": None if claim.reported.members else cell.n,
        "Run here": plain(cell.name),
        "Reported setting": claim.reported.setting,
        "Source": f"{claim.reported.source}, {SURE[claim.reported.sure]}",
    }


def _named(claim: Claim) -> dict[str, Any]:
    return {
        "Method": claim.reported.method,
        "Model": claim.reported.model,
        "Task": claim.reported.task,
        "Metric": claim.reported.metric,
    }


def _reported(claim: Claim) -> dict[str, Any]:
    return {
        "Kept": claim.reported.kept,
        "Reported before": claim.reported.before,
        "Reported after": claim.reported.after,
        "Reported improvement": claim.improvement,
    }


def show_missing(missing: Sequence[Claim]) -> None:
    """What nobody has run here, with the command for the ticked row."""
    st.subheader("Not measured here", anchor=False)
    rows = [
        _named(claim)
        | _reported(claim)
        | {
            "Reported setting": claim.reported.setting,
            "Source": f"{claim.reported.source}, {SURE[claim.reported.sure]}",
            "Command": command_for(claim.reported) or why_not_measured(claim.reported),
        }
        for claim in missing
    ]
    picked = st.dataframe(
        rows,
        hide_index=True,
        placeholder="",
        width="stretch",
        height=420,
        key=f"missing {linked_table.content_key([list(map(str, row.values())) for row in rows])}",
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": [0]}},
        column_config={
            "Method": st.column_config.TextColumn(width="medium"),
            "Kept": _SHARE,
            "Reported improvement": _DIFFERENCE,
            "Reported before": _SCORE,
            "Reported after": _SCORE,
        },
    )
    downloads(rows, "claims-not-measured")
    place = next((place for place in picked["selection"]["rows"] if place < len(missing)), 0)
    show_command(missing[place])


def show_command(claim: Claim) -> None:
    """How to measure one claim."""
    entry, command = claim.reported, command_for(claim.reported)
    st.text(f"{entry.method} on {entry.model}, {entry.task}, as reported with: {entry.setting}")
    if command is None:
        st.text(f"It cannot be measured: {why_not_measured(entry)}.")
        return
    st.code(command, language=None, wrap_lines=True)
    st.text(f"lm_eval claims run {entry.identity} does the same, and ends with a sentence on the claim.")


main()
