"""A report as one HTML file: real tables and drawn plots, styled for light, dark and paper.

Notable choices:
- Nothing is loaded, and nothing can be: the policy of the page allows its own style sheet and its own few lines of
  script, by their digests, and nothing else. Without scripts all is there but sorting.
- All text passes `svg.text`, and no name becomes an address, a class or an id.
- The verdict of a cell stands in it as hidden words; its sign is for the eye alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from leaderboard.board.cell import Cell
from leaderboard.board.standings import KINDS, Standing, gained, have_equal_names, kind
from leaderboard.readers.records import BASELINE
from leaderboard.report import words
from leaderboard.report.contents import Report
from leaderboard.report.plots import MOST_ROWS, interval_plot, size_plot
from leaderboard.report.svg import css, text
from leaderboard.report.words import baseline_score, control_text, improvement_text, share
from leaderboard.terminal.format import breakable, chance, counted, direction, metric_name, number, span
from leaderboard.terminal.marks import MARKS, STAR, cell_text, legend, p_text, words_of

_FOLDER = Path(__file__).parent
_OPEN_ROWS = 400
"""Rows of all task tables together up to which they are unfolded."""


def as_html(report: Report) -> str:
    """The whole document."""
    style, script = ((_FOLDER / name).read_text(encoding="utf-8").strip() for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none';"
        " form-action 'none'"
    )
    body = "\n".join(part for part in _parts(report) if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(report.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#board">To the board</a>\n<main>\n{body}\n</main>\n<script>{script}</script>\n'
        "</body>\n</html>\n"
    )


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _parts(report: Report) -> Iterable[str]:
    yield f"<h1>{text(report.title)}</h1>"
    yield f"<p>{''.join(map(_stressed, words.sentences(report)))}</p>"
    yield from (f'<p class="quiet">{text(remark)}</p>' for remark in report.remarks)
    yield f'<ul class="badges">{"".join(f"<li>{text(badge)}</li>" for badge in words.badges(report))}</ul>'
    yield _board(report)
    yield _failed(report)
    yield _intervals(report)
    yield _sizes(report)
    yield _tasks(report)
    yield _notes(report)
    yield _made(report)


def _stressed(sentence: tuple[str, str, str]) -> str:
    before, stressed, after = map(text, sentence)
    return f"{before}<strong>{stressed}</strong>{after}" if stressed else f"{before}{after}"


def _board(report: Report) -> str:
    board = report.standings
    listed = [row for row in (*board.rows, *board.unclaimed) if not words.is_failed(row)]
    controls = sum(len(row.controls) for row in listed) + len(board.unclaimed)
    switch = f"Show {counted(controls, 'control', 'controls')}"
    ranked = (
        f" Ranks are means over {counted(len(board.ranked_on), 'task', 'tasks')}, in which same, undecided and a gain"
        " that the control shows too count as no difference."
        if board.ranked_on
        else ""
    )
    return (
        f'<section id="board" tabindex="-1"><h2>Board</h2>{_legend(report)}'
        + (f'<p class="switch"><label><input type="checkbox" id="controls"> {switch}</label></p>' if controls else "")
        + _table(
            "Board",
            f"{text(report.title)}, by task",
            _board_heads(report),
            "".join(_group(report, row) for row in listed),
            'id="ranking" data-sort',
        )
        + f'<p class="quiet">Improvement over {text(report.baseline)}: + is good on every task, whatever its metric.'
        f" {STAR} best of its task.{ranked}</p></section>"
    )


def _table(name: str, caption: str, heads: str, bodies: str, attributes: str) -> str:
    """A table that scrolls sideways where it must. All are HTML but the name."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(name)}"><table {attributes}>'
        f"<caption>{caption}</caption><thead><tr>{heads}</tr></thead>{bodies}</table></div>"
    )


def _legend(report: Report) -> str:
    cells = [cell for row in report.standings.listed(controls=True) for cell in row.cells.values()]
    signs = (
        f'<li><span class="chip {css(name)}" aria-hidden="true">{text(mark.sign)}</span> {text(mark.words)}</li>'
        for name, mark in legend(map(kind, cells))
    )
    return f'<ul class="legend" aria-label="Signs">{"".join(signs)}</ul>'


def _board_heads(report: Report) -> str:
    board = report.standings
    heads = ['<th scope="col" data-first="up" aria-sort="ascending">Recipe</th>']
    settings = ['<th scope="col" class="settings" data-first="up">Settings</th>']
    beside_name, last = _where_settings_stand(report)
    heads += settings * beside_name
    for task in board.tasks:
        cells = [row.cells[task] for row in board.rows if task in row.cells and row.cells[task].metric]
        level = f", {told}" if (told := chance(cells)) else ""
        about = f"{metric_name(cells[0])}, {direction(cells[0])}, {_documents(cells)}{level}" if cells else ""
        heads.append(f'<th scope="col">{breakable(task)}<span class="vh"> ({text(about)})</span></th>')
    if any(row.better for row in board.rows):
        heads.append('<th scope="col">Beats control</th>')
    if _sized(report):
        heads.append('<th scope="col" data-first="up">Size kept</th>')
    return "".join([*heads, *settings * last])


def _where_settings_stand(report: Report) -> tuple[bool, bool]:
    """Whether beside the names, which two rows share, and whether last; neither where there are none."""
    rows = report.standings.rows
    beside_name = have_equal_names(rows)
    return beside_name, not beside_name and any(row.settings for row in rows)


def _documents(cells: Sequence[Cell]) -> str:
    return span([cell.n for cell in cells if cell.n is not None])


def _sized(report: Report) -> bool:
    return any(row.parameters_kept is not None for row in report.standings.rows)


def _group(report: Report, row: Standing) -> str:
    """A row with its controls, which stay with it wherever it is sorted to."""
    own = _row(report, row, "base" if row.is_baseline else "control" if row.control else "")
    return f"<tbody>{own}{''.join(_row(report, control, 'control') for control in row.controls)}</tbody>"


def _row(report: Report, row: Standing, what: str) -> str:
    board = report.standings
    place = row.rank.mean if row.rank else 1e9
    rank = f'<span class="rank">{"" if row.rank is None else row.rank}</span>'
    arrow = '<span class="rank" aria-hidden="true">\u21b3</span><span class="vh">control: </span>'
    head = f"{arrow}{breakable(row.control)}" if row.control and what == "control" else f"{rank}{breakable(row.recipe)}"
    cells = [f'<th scope="row" data-s="{place:.4g}">{head}</th>']
    sort = f' data-s="{text(row.settings)}"' if row.settings else ""
    settings = [f'<td class="settings"{sort}>{breakable(row.settings)}</td>']
    beside_name, last = _where_settings_stand(report)
    cells += settings * beside_name
    cells += [_cell(row.cells.get(task), best=row.name in board.best[task]) for task in board.tasks]
    if any(other.better for other in board.rows):
        share_beaten = f' data-s="{row.beaten / row.better:.3g}"' if row.better else ""
        cells.append(f"<td{share_beaten}>{words.beaten(row)}</td>")
    if _sized(report):
        kept = "" if row.parameters_kept is None else f' data-s="{row.parameters_kept:.4g}"'
        cells.append(f"<td{kept}>{share(row.parameters_kept)}</td>")
    cells += settings * last
    return f"<tr{f' class={chr(34)}{what}{chr(34)}' if what else ''}>{''.join(cells)}</tr>"


def _cell(cell: Cell | None, *, best: bool) -> str:
    if cell is None:
        return "<td></td>"
    if cell.verdict == BASELINE:
        return f'<td data-s="0">{text(cell_text(cell))}</td>'
    value = gained(cell)
    sort = "" if value is None else f' data-s="{value:.4g}"'
    what, mark = kind(cell), MARKS[kind(cell)]
    shown = cell_text(cell, best=best)
    number_of = shown.split(" ")[-1] if value is not None else ""
    signs = shown.removesuffix(number_of).strip() if number_of else f"{mark.sign}"
    hidden = f"{mark.words}{'; best of its task' if best else ''}"
    visible = f" {text(number_of)}" if number_of else f" {text(mark.words)}"
    said = f'<span class="vh">{text(hidden)}:</span>' if number_of else ""
    return (
        f'<td{sort}><span class="chip {css(what)}"><span aria-hidden="true">{text(signs)}</span>{said}{visible}</span>'
        "</td>"
    )


def _failed(report: Report) -> str:
    failed = words.failures(report)
    if not failed:
        return ""
    rows = "".join(f"<li><strong>{text(name)}</strong>: {text(reason)}</li>" for name, reason in failed)
    return f"<section><h2>Failed</h2><ul>{rows}</ul></section>"


def _figures(pictures: Iterable[str]) -> str:
    return "".join(f"<figure>{picture}</figure>" for picture in pictures if picture)


def _intervals(report: Report) -> str:
    figures = _figures(interval_plot(report, task) for task in report.standings.tasks)
    if not figures:
        return ""
    many = sum(not row.is_baseline for row in report.standings.rows)
    cut = f" The first {MOST_ROWS} rows by rank; the tables have all." if many > MOST_ROWS else ""
    return (
        f'<section><h2>Intervals</h2><p class="quiet">Improvement over {text(report.baseline)} with its 95 % interval.'
        " Intervals are not corrected for their number; the words are. Grey band: differences too small to matter."
        f'{cut}</p><div class="plots">{figures}</div></section>'
    )


def _sizes(report: Report) -> str:
    figures = _figures(size_plot(report, task) for task in report.standings.tasks)
    if not figures:
        return ""
    return (
        '<section><h2>Size and score</h2><p class="quiet">Across: share of the parameters kept, as factors are stored.'
        " Up: score; dashed: the baseline. Line: nothing else is as small and better. Controls are not drawn.</p>"
        f'<div class="plots">{figures}</div></section>'
    )


def _tasks(report: Report) -> str:
    tasks = report.standings.tasks
    opened = " open" if sum(len(report.primary_cells(task)) for task in tasks) <= _OPEN_ROWS else ""
    numbers = {note.text: place for place, note in enumerate(words.notes(report), 1)}
    sections = "".join(_task(report, task, opened, numbers) for task in tasks)
    return f"<section><h2>Task by task</h2>{sections}</section>"


def _task(report: Report, task: str, opened: str, numbers: dict[str, int]) -> str:
    cells = [cell for cell in report.primary_cells(task) if cell.verdict != BASELINE]
    if not cells:
        return ""
    first = next((cell for cell in cells if cell.metric), cells[0])
    controls = sorted({pair.control or "" for cell in cells for pair in cell.against_controls})
    names = ["Recipe", "Verdict", "Score", "Improvement [95 %]", "n", "p", "q", "Lost / gained"]
    names += ["Against its control"] if controls else []
    heads = "".join(f'<th scope="col">{name}</th>' for name in [*names, "Notes"])
    rows = "".join(_task_row(cell, numbers, len(controls)) for cell in cells)
    base = baseline_score(report, task)
    against = f"; baseline {number(base)}" if base is not None else ""
    control = f"; control {controls[0]}" if len(controls) == 1 else ""
    level = f"; {told}" if (told := chance(cells)) else ""
    caption = f"{task}: {metric_name(first)}, {direction(first)}, {_documents(cells)}{against}{level}{control}"
    table = _table(task, text(caption), heads, f"<tbody>{rows}</tbody>", 'class="task"')
    return f"<details{opened}><summary>{text(task)}</summary>{table}</details>"


def _task_row(cell: Cell, numbers: dict[str, int], with_controls: int) -> str:
    """with_controls: of how many kinds the controls of the table are."""
    what, mark = kind(cell), MARKS[kind(cell)]
    flips = "" if cell.lost is None else f"{cell.lost:,} / {cell.gained:,}"
    n = "" if cell.n is None else f"{cell.n:,}"
    shown = [words.score_text(cell), improvement_text(cell), n, p_text(cell.p_value), p_text(cell.q_value), flips]
    said = f'<span aria-hidden="true">{text(mark.sign)}</span> {text(words_of(cell))}'
    sign = f'<span class="chip {css(what)}">{said}</span>'
    places = sorted({numbers[note] for note in words.cell_notes(cell)})
    marks = [f'<a href="#note-{place}">{place}</a>' for place in places]
    lacks = words.lacks(cell)
    against = "; ".join(control_text(pair, named=with_controls > 1) for pair in cell.against_controls)
    return (
        f'<tr><th scope="row">{breakable(cell.name)}</th><td>{sign}</td>'
        + "".join(f"<td>{text(value)}</td>" for value in shown)
        + (f"<td>{text(against)}</td>" if with_controls else "")
        + f"<td>{', '.join([*([text(lacks)] if lacks else []), *marks])}</td></tr>"
    )


def _notes(report: Report) -> str:
    found = words.notes(report)
    if not found:
        return ""
    items = "".join(
        f'<li id="note-{place}">{text(note.text)} <span class="quiet">({text(words.of_rows(note))})</span></li>'
        for place, note in enumerate(found, 1)
    )
    return f'<section><h2>Notes</h2><ol class="notes">{items}</ol></section>'


def _made(report: Report) -> str:
    commands = "".join(
        f'<p class="quiet">{counted(made.runs, "run", "runs")}</p><pre><code>{text(made.command)}</code></pre>'
        for made in words.commands(report)
    )
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(version)}</td></tr>'
        for name, version in words.versions(report)
    )
    heads = '<th scope="col">Package</th><th scope="col">Version</th>'
    table = _table("Versions", "Versions", heads, f"<tbody>{rows}</tbody>", 'class="versions"') if rows else ""
    meanings = "".join(
        f"<li><strong>{text(MARKS[name].words)}</strong>: {text(MARKS[name].meaning)}</li>" for name in KINDS
    )
    return (
        f'<section><h2>How it was made</h2><p class="quiet">Written {report.made:%Y-%m-%d %H:%M} UTC. Differences are'
        " paired by document; verdicts are corrected over all comparisons of the board (Benjamini-Hochberg, 5 %)."
        f"</p>{commands}<details><summary>What the words mean</summary><ul>{meanings}</ul></details>{table}</section>"
    )
