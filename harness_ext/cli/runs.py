"""`lm_eval runs`: what the leaderboard holds, and taking a run off it."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from harness_ext.cli.ingest import add_database_argument
from harness_ext.cli.terminal import add_form_arguments, tell
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.subcommand import RecipesCommand
from leaderboard.commands import RUN_HELP

if TYPE_CHECKING:
    from pathlib import Path

    from leaderboard.readers.ran_on import RanOn
    from leaderboard.store.database import Store
    from leaderboard.store.queries import RunRow
    from leaderboard.terminal.output import Row

SHOWN = 20
_FILTERS = ("model", "recipe", "task", "gpu", "sweep", "status")
_SHORT_TASK = 16  # letters of a task's name that stands in place of its number
EPILOG = """
examples:
  $ lm_eval runs
  $ lm_eval runs list --model gemma-2b --status failed
  $ lm_eval runs list --json -L 100 | jq -r '.[].path'
  $ lm_eval runs delete gemma-2b/laser --reason "wrong tokenizer"
"""


class Runs(RecipesCommand):
    """List runs, delete one, or take a deletion back."""

    name = "runs"
    summary = "List the leaderboard's runs, or take one off it"
    description = (
        "List what the leaderboard holds, or take a run off it. The run's files are never touched; it is"
        " remembered that ingest must leave them out. Alone it lists."
    )
    epilog = EPILOG

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_list_arguments(parser, inner=False)
        actions = parser.add_subparsers(metavar="[ACTION]")
        listed = actions.add_parser("list", help="List runs, the newest first, or those that were deleted")
        _add_list_arguments(listed, inner=True)
        gone = actions.add_parser("delete", help="Take a run off the board; its files stay")
        gone.add_argument(
            "run", metavar="RUN", help=f"{RUN_HELP[0].upper()}{RUN_HELP[1:]}; its id where a recipe has several runs"
        )
        gone.add_argument("--reason", required=True, metavar="<text>", help="Why; kept on record")
        back = actions.add_parser("restore", help="Put a deleted run back on the board")
        back.add_argument(
            "run", metavar="RUN", help="The beginning of its id, from `runs list --deleted`, or its folder"
        )
        for action, function in ((gone, self._delete), (back, self._restore)):
            add_database_argument(action, inner=True)
            action.set_defaults(func=function)
        for action in (parser, listed):
            action.set_defaults(func=_list)

    @staticmethod
    def _delete(args: argparse.Namespace) -> None:
        from leaderboard.board.named_runs import resolve_in
        from leaderboard.commands import advised
        from leaderboard.store.deletions import delete

        found = resolve_in(args.database, args.run, newest=False)
        entry = delete(args.database, found.run.run_id, args.reason)
        print(
            f"{entry.run_id[:12]} is off the board; its files stay in {entry.path}."
            f" {advised(args.database, 'runs', 'restore', entry.run_id[:12])} takes this back"
        )

    @staticmethod
    def _restore(args: argparse.Namespace) -> None:
        from leaderboard.commands import ingest_command
        from leaderboard.ingest import ingest
        from leaderboard.store.deletions import take_back
        from leaderboard.terminal.format import plain

        entry = take_back(args.database, args.run)
        report = ingest([entry.path], args.database)
        if entry.run_id in report.added:
            print(f"{entry.run_id[:12]} is on the board again")
            return
        reasons = "; ".join(rejected.reason for rejected in report.rejected) or "it is not there"
        command = ingest_command(args.database, str(entry.path))
        raise UserError(
            plain(f"{entry.run_id[:12]} is allowed back, but {entry.path}: {reasons}; once mended: `{command}`")
        )


def _add_list_arguments(parser: argparse.ArgumentParser, *, inner: bool) -> None:
    """The flags of `list`, for it and for the command alone. inner: for an action, which must not undo what was given
    before its name.
    """

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if inner else value

    parser.add_argument(
        "--limit",
        "-L",
        type=int,
        default=default(SHOWN),
        metavar="<n>",
        help=f"How many to list (default: {SHOWN}; 0: all)",
    )
    for name, text in (
        ("model", "Only runs of this model: its name, its last part, or how either begins"),
        ("recipe", "Only runs of this recipe: its label, or, if none is called so, how it begins"),
        ("task", "Only runs that scored this task"),
        ("gpu", "Only runs made on a GPU whose name has this in it, such as H100"),
        ("sweep", "Only runs of the sweep of this name"),
    ):
        parser.add_argument(f"--{name}", default=default(None), metavar=f"<{name}>", help=text)
    parser.add_argument(
        "--status", choices=("complete", "failed"), default=default(None), help="Only runs that ended so"
    )
    parser.add_argument(
        "--deleted", action="store_true", default=default(False), help="Those that are off the board, with the reasons"
    )
    add_database_argument(parser, inner=inner)
    add_form_arguments(parser, default=default("text"))


def _list(args: argparse.Namespace) -> None:
    if args.limit < 0:
        raise UserError(f"--limit {args.limit} must be 0 (all) or more")
    if args.deleted:
        _list_deleted(args)
        return
    from leaderboard.store.database import open_store
    from leaderboard.store.families import shown_names

    with open_store(args.database) as store:
        found = _filtered(store, args)
        rows = _rows(store, found[: args.limit or None])
        if args.form == "text" and _is_terminal():
            names = shown_names(store)
            rows = [{**row, "model": names[row["model_key"]]} for row in rows]
    if not found:
        asked = [f"--{name} {value}" for name in _FILTERS if (value := vars(args)[name])]
        with_what = f" with {' '.join(asked)}" if asked else ""
        ingest = "" if asked else f": {_what_adds_runs(args.database)} add some"
        tell([f"{args.database} holds no runs{with_what}{ingest}"])
    _print(rows, args.form, ("status", "recipe", "model", "tasks", "run_id", "started"))
    _tell_rest(len(rows), len(found))


def _what_adds_runs(database: Path) -> str:
    from leaderboard.commands import ingest_command, run_arguments

    run = shlex.join(["lm_eval", "run", "...", "--recipe", "NAME", *run_arguments(database)])
    return f"`{run}` and `{ingest_command(database, 'PATH')}`"


def _list_deleted(args: argparse.Namespace) -> None:
    from leaderboard.store.deletions import deletions

    gone = deletions(args.database)[::-1]
    rows: list[Row] = [
        {"run_id": entry.run_id, "deleted": entry.logged_at, "path": entry.path, "reason": entry.reason}
        for entry in gone[: args.limit or None]
    ]
    if not rows:
        tell([f"no run is deleted in {args.database}"])
    _print(rows, args.form, ("run_id", "deleted", "path", "reason"))
    _tell_rest(len(rows), len(gone))


def _tell_rest(shown: int, count: int) -> None:
    if shown < count:
        tell([f"{shown} of {count} runs, the newest: -L 0 lists all"])


def _filtered(store: Store, args: argparse.Namespace) -> list[RunRow]:
    """The runs that were asked for, newest first."""
    from leaderboard.store import queries
    from leaderboard.store.naming import known_runs, matching, of_model

    wanted = known_runs(store)
    if args.model is not None:
        wanted = of_model(wanted, args.model)
    if args.recipe is not None:
        wanted = matching(wanted, args.recipe, lambda run: run.recipe)
    if args.status is not None:
        wanted = [run for run in wanted if run.status == args.status]
    if args.task is not None:
        scored = queries.runs_of_task(store, args.task)
        wanted = [run for run in wanted if run.run_id in scored]
    if args.gpu is not None or args.sweep is not None:
        made = queries.ran_on(store, [run.run_id for run in wanted])
        wanted = [run for run in wanted if _was_made(made[run.run_id], args.gpu, args.sweep)]
    rows = {run.run_id: run for run in queries.runs(store)}
    return [rows[run.run_id] for run in wanted]


def _was_made(made: RanOn, gpu: str | None, sweep: str | None) -> bool:
    """Whether a run was made on a GPU of such a name, and for the sweep of this name; None asks for nothing."""
    on_gpu = gpu is None or gpu.casefold() in (made.gpu or "").casefold()
    return on_gpu and (sweep is None or sweep == made.sweep)


def _rows(store: Store, runs: list[RunRow]) -> list[Row]:
    from leaderboard.board.labels import stored_names
    from leaderboard.store import queries

    run_ids = [run.run_id for run in runs]
    names, tasks, made = stored_names(store), queries.run_tasks(store, run_ids), queries.ran_on(store, run_ids)
    return [
        {
            "status": run.status,
            "recipe": names[run.run_id],
            "model": run.model_name,
            "tasks": [task.task for task in tasks.get(run.run_id, ())],
            "run_id": run.run_id,
            "started": run.started,
            "model_key": run.model_key,
            "label": run.recipe_label,
            "control": run.control,
            "dtype": run.dtype,
            "device": run.device,
            "batch_size": run.batch_size,
            **made[run.run_id]._asdict(),
            "failure": run.failure,
            "path": run.path,
        }
        for run in runs
    ]


def _print(rows: list[Row], form: Any, columns: tuple[str, ...]) -> None:
    """Print rows in the form asked for; as text and in Markdown these columns."""
    from leaderboard.terminal.output import OurText, written

    if form != "text":
        shown = [{column: row[column] for column in columns} for row in rows]
        if text := written(
            form, rows, [{**row, "status": OurText(row["status"])} if "status" in row else row for row in shown]
        ):
            print(text)
    elif rows:
        print(_as_text([{column: row[column] for column in columns} for row in rows]))


def _as_text(rows: list[Row]) -> str:
    from leaderboard.store.writer import now
    from leaderboard.terminal.listing import ago, listed, with_tabs
    from leaderboard.terminal.output import terminal_style

    if not _is_terminal():
        return with_tabs([{column: _whole(value) for column, value in row.items()} for row in rows])
    style, moment = terminal_style(), now()
    texts = [
        {
            _HEADS.get(column, column): ago(value, moment) if column in _MOMENTS else _short(column, value)
            for column, value in row.items()
        }
        for row in rows
    ]
    return listed(texts, style.width, ("recipe", "model", "path", "reason"), {"failed": "31"} if style.color else {})


def _is_terminal() -> bool:
    return sys.stdout.isatty()


_MOMENTS = ("started", "deleted")
_HEADS = {"run_id": "id", "started": "age", "deleted": "age"}


def _whole(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else f"{value:%Y-%m-%dT%H:%M:%SZ}" if hasattr(value, "strftime") else str(value)


def _short(column: str, value: Any) -> str:
    if column == "run_id":
        return str(value)[:12]
    if isinstance(value, list):
        only = len(value) == 1
        return value[0] if only and len(value[0]) <= _SHORT_TASK else f"{len(value)} {'task' if only else 'tasks'}"
    return _whole(value)
