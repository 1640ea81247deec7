"""The findings page for a terminal and as Markdown. Both say the same, line by line.

Notable choice: in Markdown every letter that could be markup is escaped, since names come from files.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from leaderboard.report.findings import PageLine
from leaderboard.terminal.listing import wrapped_text
from leaderboard.terminal.output import as_text

_LABEL = 11
"""Columns of what a finding is called."""
BREAK = " \\\n"
"""Where a command goes on in the next line."""
_ROOM = 4
"""Columns of a command's line that its indent and the sign of a break take."""
_MARKDOWN_WIDTH = 100
_BEFORE_FLAG = re.compile(r" (?=--)")


def as_terminal_page(lines: Sequence[PageLine], width: int) -> str:
    """Plain text, at most `width` columns wide. Commands are broken before flags, and nowhere else."""
    return "\n".join(_terminal(line, width) for line in lines)


def as_markdown_page(lines: Sequence[PageLine]) -> str:
    """Headings, paragraphs, lists, and commands as blocks to copy."""
    text = ""
    for before, line in zip((None, *lines), lines):
        together = before is not None and before.form == line.form == "finding"
        text += ("" if before is None else "\n" if together else "\n\n") + _markdown(line)
    return text


def _terminal(line: PageLine, width: int) -> str:
    if line.form == "command":
        return textwrap.indent(BREAK.join(_command_lines(line.text, width - _ROOM)), "  ")
    first = {"finding": f"    {line.label:{_LABEL}}", "recipe": "  "}.get(line.form, "")
    indent = " " * max(len(first), 4 if line.form == "recipe" else 0)
    if any(len(word) > width - len(indent) for word in line.text.split()):
        # Recipes in full: broken after their commas and colons, where textwrap would break inside of a word.
        filled = first + f"\n{indent}".join(wrapped_text(line.text, width - len(indent)))
    else:
        filled = textwrap.fill(line.text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    return f"\n{filled}" if line.form == "heading" else filled


def _command_lines(command: str, width: int) -> list[str]:
    """A command in lines of at most `width` letters if it can be, each but the first beginning with a flag."""
    lines = [""]
    for part in _BEFORE_FLAG.split(command):
        if lines[-1] and len(lines[-1]) + 1 + len(part) > width:
            lines.append(f"  {part}")
        else:
            lines[-1] = f"{lines[-1]} {part}".lstrip() if len(lines) == 1 else f"{lines[-1]} {part}"
    return lines


def _markdown(line: PageLine) -> str:
    if line.form == "command":
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", line.text)), default=0))
        return f"{fence}sh\n{BREAK.join(_command_lines(line.text, _MARKDOWN_WIDTH))}\n{fence}"
    escaped = as_text(line.text)
    return {
        "title": f"## {escaped}",
        "heading": f"### {escaped}",
        "recipe": f"**{escaped}**",
        "finding": f"- {as_text(line.label)}: {escaped}",
        "text": escaped,
    }[line.form]
