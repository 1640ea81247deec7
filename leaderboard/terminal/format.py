"""How numbers and verdicts are written, in the terminal and on the page alike. Plain ASCII.

Names, notes and reasons come from files that anybody may have written: `plain` makes them safe for a terminal.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

from leaderboard.board.cell import SHOWN_AS_GOOD, Cell, as_good_controls, not_its_control
from leaderboard.compare.choice_shift import Choices
from leaderboard.compare.needs import Claim
from leaderboard.compare.unpaired_scores import Unpaired
from leaderboard.metrics import GOLD_NAMES
from leaderboard.statistics import Estimate, share_limit

NOTHING = "-"
UNPAIRED = "u"
"""Behind a difference of two scores by themselves, where room is scarce."""
CLIPPED = "c"
"""Behind an interval that is not of the plain difference before it, where room is scarce."""
TOO_FEW = "too few documents"
"""In place of an interval, and of a difference that could have been shown."""
CLIPPED_LEGEND = (
    "c: the interval is of the mean change with no document counted for more than a bound; the row's note has both,"
    " the page those of further metrics."
)
UNPAIRED_LEGEND = (
    "u: unpaired. Delta [unpaired 95 %] of the two scores by themselves, from what their results files say; in no"
    " verdict and no correction."
)
FURTHER_LEGEND = (
    "+: a further metric of the task, corrected among all such of the model; gold_loglikelihood is the right answer's,"
    " in nats."
)
_PURPOSES: dict[Claim, str] = {
    "within": "to show that it is within the margin",
    "within as seen": "to show that a difference of this size is within the margin",
    "difference": "to confirm a difference of this size",
}


def number(value: float | None) -> str:
    """A score: four decimals below ten, fewer above, never `-0.0000`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    text = f"{value:.4f}" if size < 10 else f"{value:.2f}" if size < 10_000 else f"{value:.3e}"
    return text.lstrip("-") if float(text) == 0 else text


def signed(value: float | None) -> str:
    """A difference, always with its sign."""
    text = number(value)
    return text if text == NOTHING or text.startswith("-") or float(text) == 0 else f"+{text}"


def is_elsewhere(cell: Cell) -> bool:
    """Whether the interval is of the mean of clipped differences, and the plain difference lies outside of it."""
    if cell.clipped_at is None or cell.low is None or cell.high is None or cell.delta is None or cell.says_nothing:
        return False
    return not cell.low <= cell.delta <= cell.high


def interval(cell: Cell, *, short: bool = False) -> str:
    """`+0.0120 [-0.0030, +0.0270]`, or the difference alone where there is no interval, and `too few documents` in
    place of one that says nothing; what is special about it behind it, as a word or, where room is short, as a letter
    that a legend explains.
    """
    letter, word = (
        (UNPAIRED, " unpaired") if cell.unpaired else (CLIPPED, " clipped") if is_elsewhere(cell) else ("", "")
    )
    mark = letter if short else word
    if cell.low is None or cell.high is None:
        return f"{signed(cell.delta)}{mark}"
    if cell.says_nothing:
        return f"{signed(cell.delta)} {TOO_FEW}{mark if cell.unpaired else ''}"
    return f"{signed(cell.delta)} [{signed(cell.low)}, {signed(cell.high)}]{mark}"


def unpaired_words(found: Unpaired) -> str:
    """`delta -0.0500 [-0.0821, -0.0176] unpaired`, or why it has no interval."""
    ends = "" if found.low is None else f" [{signed(found.low)}, {signed(found.high)}]"
    return f"delta {signed(found.delta)}{ends} unpaired" + ("" if found.reason is None else f": {found.reason}")


def estimated(estimate: Estimate | None) -> str:
    """`0.0120 [-0.0030, +0.0270]`."""
    return (
        NOTHING if estimate is None else f"{number(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"
    )


def gained(drop: Estimate | None) -> str:
    """What was lost, with the sign of a gain: `+0.0120 [-0.0030, +0.0270]`."""
    if drop is None:
        return NOTHING
    return f"{signed(0.0 - drop.value)} [{signed(0.0 - drop.high)}, {signed(0.0 - drop.low)}]"


KEPT = (
    "the share of the parameters that is left: of a matrix of low rank as two factors or, where its recipe says so, as"
    " pivot rows (pifa), dense where that is smaller; without units, heads and coordinates that were taken away; what"
    " layers share counted once"
)
"""What `parameters_kept` counts, in words."""


def percent(fraction: float | None) -> str:
    """`91.2%`."""
    return NOTHING if fraction is None else f"{100 * fraction:.1f}%"


def undecided(cell: Cell) -> str | None:
    """What an undecided cell still lacks, and what it would have shown with what it has; None for any other."""
    if cell.verdict != "undecided":
        return None
    size = None if cell.too_few else could_show(cell)
    parts = [_too_few(cell), _needed(cell), size and f"could have shown a difference of {size}"]
    return ", ".join(filter(None, parts)) or None


def withheld(cell: Cell) -> str | None:
    """Why a cell is undecided whose interval excludes a difference of zero; None for any other."""
    if cell.low is None or cell.high is None or cell.says_nothing or cell.low <= 0 <= cell.high:
        return None
    doubt = cell.clipping.doubt(cell.n, 0.0) if cell.clipping else None
    return doubt if doubt and cell.verdict == "undecided" and doubt in cell.notes else undecided(cell)


def _too_few(cell: Cell) -> str | None:
    """That the documents can show no difference at all, and what is to be seen all the same."""
    if cell.too_few is None:
        return None
    count, least = counted(cell.n or 0, "document", "documents"), cell.too_few.least
    if cell.needs is None:
        why = "a single independent document or group says nothing of others"
    elif least is not None:
        board = f" on a board of {cell.comparisons:,} comparisons" if (cell.comparisons or 1) > 1 else ""
        why = f"whatever they answer, no test of {count} reaches 5 %{board}, which takes at least {least:,}"
    else:
        why = (
            f"{count} show, by the normal approximation, no difference less than about all that the score can change by"
        )
    seen = f"{number(cell.baseline_score)} -> {number(cell.score)}"
    fell, rose = cell.fell or 0, cell.rose or 0
    moved = f", {counted(fell, 'document', 'documents')} worse and {rose:,} better" if fell or rose else ""
    return f"too few documents: {why}; seen all the same: {seen}{moved}"


def against_controls(cell: Cell) -> list[str]:
    """A sentence for each control of its own that the recipe was compared with, on the same documents."""
    return [_against(cell, pair) for pair in cell.against_controls]


def _against(cell: Cell, pair: Cell) -> str:
    name = f"its control {plain(pair.control or '')}"
    if pair.delta is None:
        return f"cannot be compared with {name}: {plain(pair.notes[0]) if pair.notes else pair.verdict}"
    if cell.verdict == "better":
        unlike = "NOT " if pair.verdict in SHOWN_AS_GOOD else "NOT shown to be "
        said = f"better than the baseline, {'' if pair.verdict == 'better' else unlike}better than {name}"
    else:
        said = f"against {name}"
    weak = "; the control collapsed, so that this says little" if pair.against_collapsed else ""
    return f"{said}: {interval(pair)}, {pair.verdict}{weak}"


def beside_verdict(cell: Cell) -> str:
    """In short, what a recipe is against its controls; empty where it has none."""
    pairs = cell.against_controls
    if cell.verdict == "better" and pairs:
        if not_its_control(cell):
            return "NOT than its control" if as_good_controls(cell) else "its control may be too"
        collapsed = any(pair.against_collapsed for pair in pairs)
        return "than its control too, which collapsed" if collapsed else "than its control too"
    if len(pairs) > 1:
        return f"better than {sum(pair.verdict == 'better' for pair in pairs)} of {len(pairs)} controls"
    return f"against its control {pairs[0].verdict}" if pairs else ""


def could_show(cell: Cell) -> str | None:
    """The smallest difference that an undecided cell's documents show four times in five, in the metric's units, to two
    digits; `too few documents` where they show none; None for any other.
    """
    if cell.verdict == "undecided" and cell.too_few is not None:
        return TOO_FEW
    if cell.verdict != "undecided" or not cell.detectable or not math.isfinite(cell.detectable):
        return None
    return f"{cell.detectable:.2g}" if cell.detectable < 10 else number(cell.detectable)


def _needed(cell: Cell) -> str | None:
    """How many documents decide, for what, and among how many comparisons."""
    if cell.documents_needed is None or cell.needed_for is None:
        return None
    count = cell.n or 0
    if cell.too_few is not None and cell.documents_needed <= max(count, cell.too_few.least or 0):
        return None
    if cell.documents_needed <= count:
        return f"close to a verdict: needs somewhat more than the {count:,} documents it has"
    board = f" on a board of {cell.comparisons:,} comparisons" if (cell.comparisons or 1) > 1 else ""
    purpose = _PURPOSES[cell.needed_for]
    return f"needs about {cell.documents_needed:,} documents {purpose}{board}{_shared(cell)}, has {count:,}"


def _shared(cell: Cell) -> str:
    """The smaller number for a board whose other undecided cells get as many; nothing where it is about the same."""
    alone, together, count = cell.documents_needed or 0, cell.documents_needed_together, cell.n or 0
    if together is None or together <= count or together > 0.95 * alone:
        return ""
    return f" (about {together:,} if all that are undecided get as many)"


def flips(flip_rate: float | None, noise_floor: float | None, count: int | None = None) -> str | None:
    """`flips 3.1%, noise floor 0.4%: 2.7 points above it`; None where no noise floor was measured. count: documents;
    above the floor is only what exceeds the upper 95 % limit of a share that was seen on so many.
    """
    if flip_rate is None or noise_floor is None:
        return None
    limit = share_limit(round(noise_floor * count), count) if count else noise_floor
    said = f"flips {percent(flip_rate)}, noise floor {percent(noise_floor)}"
    if noise_floor < flip_rate <= limit:
        return f"{said}, or up to {percent(limit)} for all that {count:,} documents tell: not above it"
    beyond = "not above it" if flip_rate <= noise_floor else f"{100 * (flip_rate - noise_floor):.1f} points above it"
    return f"{said}: {beyond}"


def shift(cell: Cell) -> str | None:
    """`choices` of a cell, without the right answer's log-likelihood where a metric of the row is that: its interval
    counts no document for more than a bound, and two intervals of one number would contradict each other.
    """
    drop = cell.choices and cell.choices.gold_drop
    if cell.choices is None or drop is None:
        return choices(cell.choices)
    told = (one.delta for one in (cell, *cell.further) if one.metric in GOLD_NAMES and one.delta is not None)
    if any(math.isclose(abs(delta), abs(drop.value), rel_tol=1e-6, abs_tol=1e-9) for delta in told):
        return choices(cell.choices._replace(gold_drop=None))
    return choices(cell.choices)


def choices(found: Choices | None) -> str | None:
    """`answers changed 4.1%, choice divergence 0.0123 nats [+0.0101, +0.0145], ...`; None where there is nothing of
    it.
    """
    if found is None:
        return None
    parts = []
    if found.changed is not None:
        parts.append(f"answers changed {percent(found.changed)}")
    if found.divergence is not None:
        parts.append(f"choice divergence {estimated(found.divergence)} nats")
    if found.gold_drop is not None:
        parts.append(f"log-likelihood of the right answer changed by {gained(found.gold_drop)} nats")
    return ", ".join(parts) or None


def counted(number: int, one: str, many: str) -> str:
    """`1 matrix`, `2 matrices`."""
    return f"{number:,} {one if number == 1 else many}"


def direction(cell: Cell) -> str:
    """Which way is good for the cell's metric."""
    if cell.best_value is not None:
        return f"best at {cell.best_value:g}"
    return "higher is better" if cell.higher_is_better else "lower is better"


def chance(cells: Iterable[Cell]) -> str | None:
    """`chance 0.622`, that of a task's cells; the ends where it is not one, None where none is known."""
    levels = sorted({round(cell.chance, 3) for cell in cells if cell.chance is not None})
    return f"chance {' to '.join(f'{level:.3f}' for level in (levels[0], *levels[1:][-1:]))}" if levels else None


def metric_name(cell: Cell) -> str:
    """The metric, with its filter where there is a choice of them."""
    return cell.metric if cell.filter in ("", "none") else f"{cell.metric} ({cell.filter})"


def plain(text: str) -> str:
    """`text` without control characters, on one line: safe to print."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def breakable(text: str) -> str:
    """A text as HTML, in which names may break where their parts end or begin: browsers know of spaces and hyphens."""
    return re.sub(r"(?=[:+])|(?<=[,=/_])", "<wbr>", html.escape(plain(text)))


def span(counts: Sequence[int]) -> str:
    """`n 80 to 2,000`, or `n 80`."""
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f"n {low:,}" if low == high else f"n {low:,} to {high:,}"
