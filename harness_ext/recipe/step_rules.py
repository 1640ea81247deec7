"""Which steps of a recipe do not go together, and why: sentences for who wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from harness_ext.methods import Method
from harness_ext.model.size import PIFA
from harness_ext.recipe.schema import Step, counted_as, described, edits_by, has_prime_units, takes_units
from harness_ext.recipe.settings import HEAL


def _method_name(step: Step) -> str:
    """What edits, by its name: of a search that is told what to find, that."""
    method = edits_by(step)
    return step.method if method is None else method.name


def not_counted(steps: Sequence[Step]) -> str | None:
    """Why what one of these steps keeps cannot be counted in pivot rows; None where it can, or need not be."""
    for step in steps:
        if counted_as(step) != PIFA:
            continue
        method = described(step.method)
        if isinstance(method, Method) and (method.shares or method.rank_from_weights or method.primes):
            return (
                f"pifa keeps each matrix as rows of its own at one rank, and {step.method} makes it of"
                f" {'a basis that others share' if method.shares else 'several pieces'}: leave it out, or choose"
                " another method"
            )
        if step.factored is True:
            return (
                "factored=true takes two factors for their speed, and at the ranks of pifa they have none: leave"
                " factored out, and export with --format pifa"
            )
        if any(other.healing is not None for other in steps):
            return f"{HEAL} trains two factors, which at the ranks of pifa are larger than the matrix: leave one out"
    return None


def not_factored(steps: Sequence[Step]) -> str | None:
    """Why what one of these steps leaves cannot be kept as two factors for each matrix; None where it can."""
    for step in steps:
        if step.factored and has_prime_units(step):
            return (
                f"{_method_name(step)} leaves some rows or columns of a matrix beside two factors of the rest, and two"
                " factors of the whole would hold more numbers than it counts: leave factored out, or set prime=0"
            )
    return None


def not_healed(steps: Sequence[Step]) -> str | None:
    """Why a step of these cannot train what those before it edited; None where it can, or none is to."""
    places = [place for place, step in enumerate(steps) if step.healing is not None]
    if not places:
        return None
    if places[0] == 0:
        return (
            "it trains what earlier steps edited, and there is none before it: write a step that edits, or leave it out"
        )
    for step in steps[: places[-1]]:
        if takes_units(step):
            return (
                f"it trains whole matrices, and the units that {step.method} takes away would come back: leave it out,"
                " or choose another method"
            )
        if has_prime_units(step):
            return (
                "it trains two factors of each matrix, and would no longer leave the prime units of"
                f" {_method_name(step)} as they are: leave it out, or set prime=0"
            )
        if (method := edits_by(step)) is not None and method.shares:
            return (
                f"it trains the factors of each matrix by themselves, and those of {method.name} would no longer be"
                " shared: leave it out, or choose another method"
            )
    return None
