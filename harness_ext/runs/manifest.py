"""What came of a run with recipes, for the program that started it: which folders hold its variants, and what failed.

Written last, whole, by a command that leaves the leaderboard's database to whoever reads this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness_ext.errors import UserError
from harness_ext.runs.session import ControlNotMade, VariantOutcome
from harness_ext.storage.disk import is_of_the_disk
from harness_ext.storage.whole_files import write_record

FORMAT = "manifest"


def write_manifest(
    path: Path,
    outcomes: Sequence[VariantOutcome],
    mistake: UserError | None,
    not_made: Sequence[ControlNotMade] = (),
) -> None:
    """Write the manifest of a run. mistake: what stopped it, if anything did. not_made: controls that cannot be ones of
    their recipes. Raises UserError.
    """
    record = {
        "format": FORMAT,
        "runs": [_entry(outcome) for outcome in outcomes],
        "not_made": [control._asdict() for control in not_made],
        "mistake": None if mistake is None else {"kind": mistake_kind(mistake), "reason": str(mistake)},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, record)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; name another with --manifest") from None


def mistake_kind(error: BaseException) -> str:
    """`disk` where a disk is behind an error, which another machine may not have; else `asked`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and is_of_the_disk(seen):
            return "disk"
        seen = seen.__cause__ or seen.__context__
    return "asked"


def _entry(outcome: VariantOutcome) -> dict[str, Any]:
    receipt = outcome.run.receipt
    failure = receipt.get("failure") if outcome.run.failed else None
    return {
        "recipe": outcome.recipe.label,
        "recipe_id": outcome.recipe.recipe_id,
        "control": outcome.recipe.control,
        "path": str(outcome.run.path.resolve()),
        "spec_id": receipt.get("spec_id"),
        "kept": outcome.reused,
        "failure": None if failure is None else {"kind": failure["kind"], "reason": failure["reason"]},
    }
