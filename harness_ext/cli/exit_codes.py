"""What each command ends with: the table in README.md is made of this, and a test holds it against the commands."""

from __future__ import annotations

DONE, CHECK_FAILED, MISTAKE, CANNOT_TELL = 0, 1, 2, 3
INTERRUPTED = "interrupted: what was complete is kept; the same command goes on from there"
EVERY_COMMAND = {
    DONE: "done",
    MISTAKE: "a mistake that you can mend, told in a sentence (a wrong flag, no such run, a full disk); or Ctrl-C",
}
"""Of all our commands, lm-eval's with a recipe among them."""
EXIT_CODES: dict[str, dict[int, str]] = {
    "run": {
        DONE: "every variant was scored; without `--recipe`: lm-eval's own codes",
        MISTAKE: "as above; or a variant failed, after all others were scored and the table was printed",
    },
    "ls": {DONE: "listed (lm-eval's own)"},
    "validate": {DONE: "all tasks are there (lm-eval's own)", CHECK_FAILED: "a task is not there"},
    "compare": {DONE: "compared, whatever the verdicts say"},
    "gate": {
        DONE: "PASS or WARN",
        CHECK_FAILED: "FAIL",
        MISTAKE: "INCOMPARABLE; or as above",
        CANNOT_TELL: "UNDECIDED",
    },
    "ingest": {
        DONE: "all runs below the paths are in; files that are no runs are told on standard error",
        CHECK_FAILED: "with `--strict`: a file below the paths was refused",
        MISTAKE: (
            "a PATH is not there, cannot be read, or is refused itself; or files of runs that `--rebuild` knew are"
            " gone. The rest is in; or as above"
        ),
    },
    "sweep": {
        DONE: "`run`, `retry`, `status`: every cell is done; `plan`: planned",
        CHECK_FAILED: (
            "`run`, `retry`, `status`: a cell failed; `run`, `retry`: or is to be run again, since its run folder was"
            " damaged or its files changed. Its row says why"
        ),
        CANNOT_TELL: "`status`, `retry`: cells are running or waiting, and none has failed (`retry` did nothing)",
    },
    "audit": {
        DONE: "the findings were printed, whatever they are",
        MISTAKE: "as above; or a recipe failed, after all others were scored and the findings were printed",
    },
    "doctor": {DONE: "the installation is whole", CHECK_FAILED: "something needs mending"},
}
"""What differs from `EVERY_COMMAND`, or says more."""


def exit_table() -> str:
    """The codes as a table in Markdown."""
    rows = [("any", EVERY_COMMAND), *((f"`{name}`", codes) for name, codes in EXIT_CODES.items())]
    lines = ["| command | code | meaning |", "|---|---|---|"]
    lines += [f"| {name} | {code} | {text} |" for name, codes in rows for code, text in codes.items()]
    return "\n".join(lines)
