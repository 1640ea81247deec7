"""How a run is named, in every command: by a path, by its id, or by MODEL/RECIPE.

The rules, first to last:
1. A path that exists is that folder or results file. If the same word is, letter by letter, the name of another run of
   the leaderboard, it is refused, as git refuses what is a revision and a file: `./NAME` is the folder, the id the run.
2. A whole id, or a whole MODEL/RECIPE. MODEL may have slashes, be the last part of the model's name, or `NAME
   (IDENTITY)` as pages call one of several of a name; RECIPE is the label that tables show. RECIPE alone will do, and
   so will the name of the run's folder, and what tables call the run (`laser [limit 20]`).
3. Else what it completes: the beginning of an id, of RECIPE, or of MODEL and RECIPE. Controls are only taken where
   nothing else begins so.

What fits several recipes or models is refused with the candidates. Of several runs of one recipe on one model the
newest complete one is taken, also where several identities share the model's name, and a note says so; as the base of a
comparison that one comes first with which the board compares the others.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from leaderboard.commands import advised
from leaderboard.errors import UnknownRun
from leaderboard.store.database import Store
from leaderboard.store.queries import deleted_at, deleted_words

MOST_CANDIDATES = 10
ID_DIGITS = 12
_FEW = 5
_LEAST_OF_SPEC = 6
EXPLICIT = (".", "/", "~")
"""What a name begins with that is meant as a path."""


class KnownRun(NamedTuple):
    """What a run can be called by. `identity`: of the model's weights or commit, shortened; `recipe`: its label;
    `path`: where it lies now; `shown`: what tables call the recipe, where that says more.
    """

    run_id: str
    former_id: str | None
    spec_id: str | None
    model_key: str
    model: str
    identity: str
    recipe: str
    is_control: bool
    status: str
    started: datetime | None
    path: Path
    shown: str = ""

    @property
    def name(self) -> str:
        """MODEL/RECIPE."""
        return f"{self.model}/{self.recipe}"


class ResolvedRun(NamedTuple):
    """The run that a name means. notes: sentences on what was chosen among several, for standard error."""

    run: KnownRun
    notes: tuple[str, ...] = ()


class AmbiguousRun(UnknownRun):
    """A name that fits several runs; the message lists them."""


def known_runs(store: Store) -> list[KnownRun]:
    """All runs, newest first."""
    rows = store.rows(
        "SELECT run_id, former_id, spec_id, model_key, model_name AS model, coalesce(nullif(identity, ''), model_key)"
        " AS identity, recipe_label AS recipe, control IS NOT NULL AS"
        " is_control, status, started, path FROM runs JOIN variants USING (variant_id)"
        " ORDER BY started DESC NULLS LAST, runs.rowid DESC"
    )
    return [
        KnownRun(**row | {"path": store.places.resolved(row["path"]), "identity": short_identity(row["identity"])})
        for row in rows
    ]


def resolve(
    store: Store,
    name: str,
    *,
    newest: bool = True,
    shown: Callable[[Store], Mapping[str, str]] | None = None,
    preferred: Callable[[Store, Sequence[KnownRun]], Sequence[str]] | None = None,
    other: str = "the other run",
) -> ResolvedRun:
    """The run of the store that a name means, by the rules above.

    newest: whether of several runs of one recipe the newest is taken, instead of asking for an id. shown: what tables
    call runs, by run_id; only asked for what looks like it. preferred: of all runs, the ids of those that others are
    compared with, first to last; only asked where the newest would be taken. other: what is compared with the run, in
    words. Raises `UnknownRun`.
    """
    runs = known_runs(store)
    if shown is not None and name.endswith(("]", ")")):
        names = shown(store)
        runs = [run._replace(shown=names.get(run.run_id, "")) for run in runs]
    if name and Path(name).exists():
        found = lying_at(runs, Path(name))
        refuse_both(name, found, exactly(runs, name))
        if len({run.run_id for run in found}) != 1:
            gone = [] if found else deleted_at(store, Path(name))
            if len(gone) == 1 and (told := deleted_words(store, gone[0])):
                raise UnknownRun(told)
            raise UnknownRun(
                f"{name} holds {len(found) or 'no'} runs of this leaderboard: name one run's folder or results file,"
                " its id, or MODEL/RECIPE"
            )
        return ResolvedRun(found[0])
    found = exactly(runs, name) or _completed(runs, name)
    resolved = _chosen(store, found, runs, name, newest=newest)
    if resolved.notes and preferred is not None:
        by_id = {run.run_id: run for run in found if run.status == "complete"}
        best = next((by_id[run_id] for run_id in preferred(store, runs) if run_id in by_id), resolved.run)
        if best != resolved.run:
            return ResolvedRun(best, (_note(best, found, f"one that the board compares {other} with"),))
    return resolved


def find_run(store: Store, name: str) -> str:
    """The id of the run that a name means. Raises `UnknownRun`."""
    return resolve(store, name).run.run_id


def matching(runs: Iterable[KnownRun], text: str, part: Callable[[KnownRun], str]) -> list[KnownRun]:
    """The runs whose model or recipe (`part`) is called so: whole, by its last part, or, if none is, beginning so."""
    held = list(runs)
    for fits in (
        lambda own: own == text,
        lambda own: last_part(own) == text,
        lambda own: own.startswith(text) or last_part(own).startswith(text),
    ):
        if found := [run for run in held if fits(part(run))]:
            return found
    return []


def of_model(runs: Iterable[KnownRun], text: str) -> list[KnownRun]:
    """The runs whose model is called so, as `matching` has it; `NAME (IDENTITY)` is one of those that share a name."""
    held = list(runs)
    return [run for run in held if text in _with_identity(run)] or matching(held, text, lambda run: run.model)


def short_identity(identity: str) -> str:
    """Of `sha256:...` and `organisation/model@commit` the part that differs, eight characters of it."""
    return identity.rpartition("@")[2].rpartition(":")[2][:8]


def last_part(name: str) -> str:
    """Of a model's name what stands behind its last slash."""
    return name.rstrip("/").rpartition("/")[2]


def when(moment: datetime | None) -> str:
    """A date to the minute, in UTC as the store has it."""
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "unknown date"


def lying_at(runs: Sequence[KnownRun], place: Path) -> list[KnownRun]:
    """The runs whose folder or results file a path is, or whose file lies in that folder."""
    where = place.resolve()

    def among(some: Iterable[KnownRun]) -> list[KnownRun]:
        return [run for run in some if where in ((own := run.path.resolve()), own.parent)]

    # a look at the disk for each of ten thousand runs takes seconds: first those whose names are right
    likely = [run for run in runs if where.name in (run.path.name, run.path.parent.name)]
    return among(likely) or among(runs)


def refuse_both(name: str, at_path: Sequence[KnownRun], named: Sequence[KnownRun]) -> None:
    """Refuse a path that is another run's name as well."""
    others = [run for run in named if run.run_id not in {found.run_id for found in at_path}]
    if others and not name.startswith(EXPLICIT) and len(others) == len(named):
        raise AmbiguousRun(
            f"{name} is both a path and the run {others[0].run_id[:ID_DIGITS]} of the leaderboard: write"
            f" .{os.sep}{name} for the path, or the run's id"
        )


def _with_identity(run: KnownRun) -> tuple[str, str]:
    """What pages call one of several models of a name."""
    return f"{run.model} ({run.identity})", f"{last_part(run.model)} ({run.identity})"


def _models(run: KnownRun) -> list[str]:
    """What a run's model may be called in front of its recipe."""
    return [f"{model}/" for model in (run.model, last_part(run.model), *_with_identity(run))]


def _splits(name: str) -> list[tuple[str, str]]:
    """Every reading of a name as MODEL and RECIPE, of which either may have slashes."""
    return [(name[:place], name[place + 1 :]) for place, letter in enumerate(name) if letter == "/" and place]


def exactly(runs: Iterable[KnownRun], name: str) -> list[KnownRun]:
    """The runs that are called so, letter by letter."""
    held = list(runs)
    for fits in (
        lambda run: name == run.run_id,
        lambda run: name == run.former_id,
        lambda run: name == run.name,
        lambda run: name == f"{last_part(run.model)}/{run.recipe}",
        lambda run: run.shown and name in [f"{lead}{run.shown}" for lead in ("", *_models(run))],
        lambda run: name in [f"{lead}{run.recipe}" for lead in _models(run)],
        lambda run: name == run.recipe,
        lambda run: name == run.path.name,
    ):
        if found := [run for run in held if fits(run)]:
            return found
    return []


def _completed(runs: Sequence[KnownRun], name: str) -> list[KnownRun]:
    """The runs that a name is the beginning of."""
    if not name:
        return []
    by_id = [run for run in runs if run.run_id.startswith(name)]
    by_id = by_id or [run for run in runs if (run.former_id or "").startswith(name)]
    if len(name) >= _LEAST_OF_SPEC:  # what stands at the end of a run folder's name
        by_id = by_id or [run for run in runs if (run.spec_id or "").startswith(name)]
    by_name = [run for run in runs if run.recipe.startswith(name)]
    for model, recipe in _splits(name):
        by_name += [
            run
            for run in of_model(runs, model)
            if (run.recipe.startswith(recipe) or run.shown == recipe) and run not in by_name
        ]
    whole = [run for run in by_name if any(run.recipe == recipe for _, recipe in _splits(name))]
    by_name = whole or [run for run in by_name if not run.is_control] or by_name
    return [*by_id, *(run for run in by_name if run not in by_id)]


def _chosen(
    store: Store, found: Sequence[KnownRun], runs: Sequence[KnownRun], name: str, *, newest: bool
) -> ResolvedRun:
    if not found:
        raise UnknownRun(_unknown(store, runs, name))
    if len(found) == 1:
        return ResolvedRun(found[0])
    former = [run for run in found if not run.run_id.startswith(name) and (run.former_id or "").startswith(name)]
    if len(former) > 1:
        raise AmbiguousRun(f"several runs had the id {name} in an earlier version: name one by its folder")
    by_id = any(run.run_id.startswith(name) for run in found)
    if by_id or len({run.name for run in found}) > 1 or not newest:
        raise AmbiguousRun(_candidates(found, name))
    best = next((run for run in found if run.status == "complete"), found[0])
    return ResolvedRun(best, (_note(best, found, "newest" if best == found[0] else "newest complete one"),))


def _note(best: KnownRun, found: Sequence[KnownRun], kind: str) -> str:
    identities = len({run.model_key for run in found})
    of_several = f", of {identities} identities of the model" if identities > 1 else ""
    return (
        f"{best.name} has {len(found)} runs{of_several}: the {kind} is taken, {best.run_id[:ID_DIGITS]} of"
        f" {when(best.started)} UTC; an id names another"
    )


def _candidates(found: Sequence[KnownRun], name: str) -> str:
    shown = found[:MOST_CANDIDATES]
    width = max(len(run.name) for run in shown)
    lines = [f"  {run.run_id[:ID_DIGITS]}  {_printable(run.name):<{width}}  {when(run.started)}" for run in shown]
    more = [f"  and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
    return "\n".join([f"{name} is ambiguous: it may be", *lines, *more, "give more of the name, or an id"])


def _unknown(store: Store, runs: Sequence[KnownRun], name: str) -> str:
    where = f"{advised(store.path, 'runs', 'list')} shows their ids"
    if not name:
        return f"no run (none named) in the leaderboard: {where}"
    if alike := of_model(runs, name):
        models = list(dict.fromkeys(_printable(run.model) for run in alike))
        if len(models) > 1:
            return f"no run {name} in the leaderboard: the models {_few(models)} begin so; write MODEL/RECIPE"
        recipes = _few(list(dict.fromkeys(_printable(run.recipe) for run in alike)))
        return f"no run {name} in the leaderboard: {models[0]} is a model, write {models[0]}/RECIPE; it has {recipes}"
    if told := deleted_words(store, name):
        return told
    near = _nearest(runs, name)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"no run {name} in the leaderboard: {where}{meant}"


def _nearest(runs: Sequence[KnownRun], name: str) -> list[str]:
    """Up to three names like a mistyped one, the newest runs' first among equals."""
    said: dict[str, str] = {}
    for run in runs:
        forms = (run.name, f"{last_part(run.model)}/{run.recipe}", *(() if "/" in name else (run.recipe,)))
        for form in forms:
            said.setdefault(form, _printable(run.name))
    close = difflib.get_close_matches(name, said, n=6, cutoff=0.7)
    return list(dict.fromkeys(said[form] for form in close))[:3]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
