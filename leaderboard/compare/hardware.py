"""Where two runs were made, as far as it decides whether they may be compared: by which engine, on which GPU.

Another GPU, or another engine, rounds otherwise, and answers flip by that alone. Notable choices:
- Two places are known to be two only where both runs name an engine and the two differ, or both name a GPU and these
  differ; a CPU is a place as a GPU is. Runs of before and runs of other harnesses, which do not say, are compared with
  all others; where one of two says it, a warning tells that the other does not.
- Runs of two places are compared where the noise floor of both was measured on the model, by `lm_eval noise` or by the
  recipe `identity`: the larger is then the floor. A warning names the two places. Otherwise they are *incomparable*;
  a gate's policy may allow them (`different_hardware: warn`).
- Only scores of 0 and 1 have a noise floor, so that other metrics are compared within one place alone.
- A floor whose runs do not say where they were made holds for every place that is not known to be another; it measures
  none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leaderboard.readers.ran_on import ComputePlace
from leaderboard.store import noise_floor as floors
from leaderboard.store.noise_floor import Floor
from leaderboard.store.queries import RunRow


@dataclass(frozen=True)
class Elsewhere:
    """Two runs that were made in two places. baseline, run: the two; unmeasured: those without a noise floor."""

    baseline: ComputePlace
    run: ComputePlace
    unmeasured: tuple[ComputePlace, ...]

    @property
    def is_measured(self) -> bool:
        """Whether both places have a noise floor, so that the two may be compared."""
        return not self.unmeasured

    @property
    def warning(self) -> str:
        """What is to be said beside a comparison."""
        floor = "the larger noise floor of the two counts" if self.is_measured else "the noise of both is not known"
        return f"warning: {self._differences()}; {floor}"

    @property
    def refusal(self) -> str:
        """Why there is no comparison, and the way out."""
        lacking = "either" if len(self.unmeasured) == 2 else words(self.unmeasured[0])
        return (
            f"{self._differences()}, and the noise of this metric was not measured on {lacking}: score the unedited"
            " model where this run was made, or measure it with `lm_eval noise` on both (for scores of right or wrong)"
        )

    def _differences(self) -> str:
        pairs = (
            (what, one, other)
            for what, one, other in zip(("engine", "GPU"), self.baseline, self.run)
            if one and other and one != other
        )
        return " and ".join(f"{what} differs: baseline {one}, this run {other}" for what, one, other in pairs)


def words(place: ComputePlace) -> str:
    """`vllm on NVIDIA A100`, or what of it is known."""
    return " on ".join(filter(None, place)) or "an unknown machine"


def are_two(first: ComputePlace, second: ComputePlace) -> bool:
    """Whether two places are known to be two."""
    return any(one is not None and other is not None and one != other for one, other in zip(first, second))


def unknown_place(baseline: RunRow, run: RunRow) -> tuple[str, ...]:
    """What is to be said where only one of two runs says by which engine, or on which GPU, it was made."""
    notes = []
    for which, place, other in (("the baseline", baseline.place, run.place), ("this run", run.place, baseline.place)):
        known = zip(("by which engine", "on which GPU or CPU"), place, other)
        lacking = [what for what, own, others in known if own is None and others is not None]
        if lacking:
            notes.append(f"warning: {which} does not say {' and '.join(lacking)} it was made; the other run does")
    return tuple(notes)


def same_place(first: RunRow, second: RunRow) -> bool:
    """Whether two runs were made in one place, as far as they say."""
    if first.engine == second.engine and first.gpu == second.gpu:  # a board asks a hundred thousand times
        return True
    return not are_two(first.place, second.place)


def distance(baseline: RunRow, run: RunRow) -> int:
    """How far a baseline was made from a run: 0 in one place, as far as it counts; 1 where it does not say on which
    GPU, or that there was none, 2 in another place.
    """
    if not same_place(baseline, run):
        return 2
    return int(run.gpu is not None and baseline.gpu is None)


def elsewhere(measured: Sequence[Floor], baseline: RunRow, run: RunRow) -> Elsewhere:
    """Of two runs made in two places, what was measured there. measured: of the model and the metric."""
    known = {floor.place for floor in measured}
    places = (baseline.place, run.place)
    return Elsewhere(*places, tuple(place for place in places if place not in known))


def noise_floor(measured: Sequence[Floor], baseline: RunRow, run: RunRow) -> float | None:
    """The share of answers that flip when rounding alone changes, for comparisons of two runs: in the place where they
    were made, of two the larger. None where it was not measured there. measured: of the model and the metric.
    """
    places = {baseline.place} if same_place(baseline, run) else {baseline.place, run.place}
    rates = [
        floors.rate([floor for floor in measured if not are_two(floor.place, place)], baseline.run_id)
        for place in places
    ]
    return max((rate for rate in rates if rate is not None), default=None)
