"""Which runs a gate compares: one named by a path, an id or MODEL/RECIPE, `base` (the unedited model) or `blessed` (the
last blessed run of the recipe), each read from its files.

Notable choices: the database names runs and says where they lie, and their files are what is compared. `base` is looked
for there and beside the candidate, where `lm_eval run` puts it; `base_choice` says which run it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from leaderboard.board.named_runs import place_of
from leaderboard.commands import advised
from leaderboard.errors import LeaderboardError, UnknownRun, Unreadable
from leaderboard.gate.base_choice import choose_base
from leaderboard.readers.discovery import RECEIPT, Candidate, find_runs
from leaderboard.readers.edited import of_receipt
from leaderboard.readers.reader import read_runs
from leaderboard.readers.receipt import Receipt, read_receipt
from leaderboard.readers.records import BASELINE, Rejection, Run
from leaderboard.readers.safe_json import canonical
from leaderboard.readers.weights_digest import began_alike, weights_differ
from leaderboard.store import pins, queries
from leaderboard.store.database import open_store
from leaderboard.store.naming import AmbiguousRun

Role = Literal["base", "blessed", "run"]
PATIENCE_SECONDS = 30.0
"""How long a busy database is waited for."""


class Named(NamedTuple):
    """A run to compare with: in which role, and how it came to have it. others: task -> the run that it is compared
    with instead, because `run` did not run it in the candidate's form.
    """

    role: Role
    run: Run
    how: str
    others: Mapping[str, Run] = {}

    def run_of(self, task: str) -> Run:
        """The run that a task is compared with."""
        return self.others.get(task, self.run)

    @property
    def margins(self) -> Literal["base", "blessed"]:
        """Whose margins a policy with several means: a run that is named by itself has those of an unedited or of an
        edited one.
        """
        return "base" if is_unedited(self.run) else "blessed"


def is_unedited(run: Run) -> bool:
    """Whether a run is of the model as it is."""
    return run.variant.recipe_name == BASELINE or (run.origin != "recipe" and run.edited is not True)


def read_one(path: Path, what: str) -> Run:
    """The one complete run at a path. Raises `LeaderboardError` where there is none, more than one, or a failed one."""
    found = list(find_runs(path))
    candidates = [item for item in found if isinstance(item, Candidate)]
    rejected = [item for item in found if isinstance(item, Rejection)]
    if len(candidates) != 1:
        reason = (
            f"holds {len(candidates)} runs: name one run's folder or results file"
            if candidates
            else rejected[0].reason
            if rejected
            else "holds no run"
        )
        raise LeaderboardError(f"{what} {path}: {reason}")
    try:
        runs = read_runs(candidates[0])
    except Unreadable as error:
        raise LeaderboardError(f"{what} {path}: {error}") from None
    if len(runs) != 1:
        raise LeaderboardError(f"{what} {path}: holds {len(runs)} runs of an old form, which are shown, not gateable")
    (run,) = runs
    if run.status != "complete":
        where = f" ({run.failure_where})" if run.failure_where else ""
        raise LeaderboardError(
            f"{what} {path} is a failed run, and there is nothing to compare: {run.failure_kind}:"
            f" {run.failure_reason}{where}"
        )
    return run


def read_named(
    name: str, database: Path, what: str, notes: list[str] | None = None, base_of: Path | None = None
) -> Run:
    """The run that a name means, by the rules of `leaderboard.store.naming`. notes: gets sentences on what was chosen
    among several. base_of: where the run lies that is compared with it.

    Raises `LeaderboardError`.
    """
    try:
        place = place_of(name, database, what, base_of=base_of)
    except AmbiguousRun:
        raise
    except UnknownRun as error:
        close = difflib.get_close_matches(name, ("base", "blessed"), n=1) if what == "baseline" else ()
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise LeaderboardError(f"{error}{meant}") from None
    if notes is not None:
        notes += place.notes
    return read_one(place.path, what) if place.path == Path(name) else _from_store(place.path, what)


def _from_store(place: Path, what: str) -> Run:
    if not place.exists():
        raise LeaderboardError(
            f"{what} {place}: its files are gone, and a gate compares files: bring them back, or name another run"
        )
    return read_one(place, what)


def base_of(run: Run, database: Path | None) -> Named | None:
    """The unedited run of a run's model; None where there is none, or the run itself is unedited."""
    if is_unedited(run):
        return None
    beside = _beside(run, _known_paths(database))
    found = choose_base(run, beside, database, PATIENCE_SECONDS)
    if found is None:
        return None
    read = {other.run_id: other for other in beside}
    for row in (found.main, *found.others.values()):
        if row.run_id not in read:
            what = "the pinned baseline" if row.run_id == found.pinned else "the unedited run"
            read[row.run_id] = _from_store(Path(row.path), what)
    main = found.main
    how = (
        "pinned"
        if main.run_id == found.pinned
        else "found beside it"
        if main.run_id in {other.run_id for other in beside}
        else "the same settings"
        if main.settings_id == run.settings_id
        else "other settings"
    )
    said = "; ".join((f"{how}, run {main.run_id[:12]}", *found.notes))
    return Named("base", read[main.run_id], said, {task: read[row.run_id] for task, row in found.others.items()})


def _known_paths(database: Path | None) -> set[str]:
    if database is None or not database.exists():
        return set()
    with open_store(database, read_only=True, timeout_s=PATIENCE_SECONDS) as store:
        return {row.path for row in queries.runs(store)}


def _beside(run: Run, known: set[str]) -> list[Run]:
    """Unedited runs of the same weights and of tasks of the run, in the folder that it lies in, but those at known
    paths. Of those that asked the same the latest.
    """
    if run.origin != "recipe" or run.variant.digest_before is None:
        return []
    found: dict[str, tuple[str, Path]] = {}
    mine = {task.task for task in run.tasks}
    for path in _receipts(run.path.parent, run.path):
        if str(path.parent) in known:
            continue
        try:
            receipt, _ = read_receipt(path)
        except (Unreadable, OSError):
            continue
        if (
            of_receipt(receipt).edited is False
            and receipt.status == "complete"
            and _began_from(run, receipt)
            and mine & receipt.tasks.keys()
        ):
            asked = canonical([receipt.settings_id, receipt.tasks])
            found[asked] = max(found.get(asked, ("", path)), (receipt.started or "", path))
    return [read_one(path.parent, "the unedited run") for _, path in found.values()]


def _began_from(run: Run, unedited: Receipt) -> bool:
    """Whether a run began from the weights that an unedited one scored."""
    model, variant = unedited.model, run.variant
    alike = began_alike(unedited.weights.digest_after, variant.digest_before, model.identity, variant.identity)
    one_kind = weights_differ(unedited.weights.digest_after, variant.digest_before) is not None
    return alike is True and (one_kind or (model.dtype, model.revision) == (variant.dtype, variant.revision))


def _receipts(folder: Path, but: Path) -> Iterable[Path]:
    return sorted(path for path in folder.glob(f"[!.]*/{RECEIPT}") if path.parent != but)


def blessed_for(run: Run, database: Path | None) -> Named | None:
    """The last blessed run of the run's model (by name) and recipe; None where none is blessed."""
    if database is None or not database.exists():
        return None
    with open_store(database, read_only=True, timeout_s=PATIENCE_SECONDS) as store:
        last = pins.last_blessing(store, run.variant.model_name, run.variant.recipe_label)
        if last is None:
            return None
        try:
            place = Path(str(queries.run_details(store, last.run_id)["path"]))
        except UnknownRun:
            raise LeaderboardError(
                f"the blessed run {last.run_id[:12]} is no longer in {database}: bless another, {_blessing(database)}"
            ) from None
    return Named(
        "blessed",
        _from_store(place, "the blessed run"),
        f"blessed {last.pinned_at:%Y-%m-%d}, run {last.run_id[:12]}: {last.reason}",
    )


def baselines_of(candidate: Run, asked: Iterable[str], database: Path) -> list[Named]:
    """The runs to compare with: those asked for, or else `base` and `blessed` as far as there are any.

    Raises `LeaderboardError` where one that is asked for does not exist, or none does.
    """
    label, model = candidate.variant.recipe_label, candidate.variant.model_name
    found: list[Named] = []
    names = list(dict.fromkeys(asked))
    for name in names or ("base", "blessed"):
        if name == "base":
            named = base_of(candidate, database)
            missing = (
                "the candidate is the unedited model itself"
                if is_unedited(candidate)
                else (
                    f"no unedited run of {model} is in {database} or beside the candidate; name one with --baseline"
                    " PATH"
                )
            )
        elif name == "blessed":
            named = blessed_for(candidate, database)
            missing = f"no run of {label} on {model} is blessed in {database}: {_blessing(database)} blesses one"
        else:
            notes: list[str] = []
            run = read_named(name, database, "baseline", notes, candidate.path)
            named, missing = Named("run", run, "; ".join([f"named, {name}", *notes])), ""
        if named is not None and named.run.run_id not in {other.run.run_id for other in found}:
            found.append(named)
        elif named is None and names:
            raise LeaderboardError(f"no baseline {name!r}: {missing}")
    if not found:
        unedited = (
            "the candidate is itself the unedited run of the model"
            if is_unedited(candidate)
            else "no unedited run of the model is known"
        )
        raise LeaderboardError(
            f"nothing to compare {label} on {model} with: {unedited}, and no run of the recipe is blessed in"
            f" {database}; name a run with --baseline PATH"
        )
    return found


def _blessing(database: Path) -> str:
    return advised(database, "baseline", "set", "RUN", "--reason", "...")
