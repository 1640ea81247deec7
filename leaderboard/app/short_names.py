"""What tells rows of one name apart, in short: the settings that the others do not have, before those that all have.

Notable choice: a name that no other row has needs no settings beside it. The whole name is in the tooltip or behind the
row's link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from leaderboard.board.standings import Standing
from leaderboard.terminal.format import plain

COMPARED_WITH = "compared with"
"""In place of the settings of the baseline's row, where other unedited runs stand beside it: it has runs of several."""
LONGEST = 24  # letters of a short name
_OPEN, _CLOSE = "([", ")]"


def telling_settings(rows: Sequence[Standing]) -> list[str]:
    """The settings of each row, those first that tell it from rows of the same name."""
    alike = Counter(map(_shown, rows))
    parts = [settings_parts(row.settings) for row in rows]
    held = Counter((_shown(row), part) for row, own in zip(rows, parts) for part in set(own))
    found = []
    for row, own in zip(rows, parts):
        count = alike[_shown(row)]
        if row.is_main and count > 1:
            found.append(COMPARED_WITH)
        else:
            found.append(_joined(sorted(own, key=lambda part: held[_shown(row), part] == count)))
    return found


def short_names(rows: Sequence[Standing]) -> list[str]:
    """Each row's name, with its settings only where another row has the name; cut, and numbered where two are then
    alike.
    """
    alike = Counter(map(_shown, rows))
    names = [
        f"{plain(row.recipe)} {settings}".strip() if alike[_shown(row)] > 1 else plain(row.recipe)
        for row, settings in zip(rows, telling_settings(rows))
    ]
    short = [name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in names]
    often, seen = Counter(short), Counter[str]()
    for place, name in enumerate(short):
        if often[name] > 1:
            seen[name] += 1
            short[place] = f"{seen[name]}. {name}"
    return short


def settings_parts(settings: str) -> list[str]:
    """`fractions=[0.1,0.01],layers=0 [limit 40]` as its three parts: brackets are not taken apart."""
    parts, depth = [""], 0
    for letter in plain(settings):
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter in ", " and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


def _joined(parts: Sequence[str]) -> str:
    return "".join(f"{'' if not i else ' ' if part[0] in _OPEN else ', '}{part}" for i, part in enumerate(parts))


def _shown(row: Standing) -> tuple[bool, str]:
    """What a row is called beside its settings: controls bear an arrow."""
    return row.control is not None, plain(row.recipe)
