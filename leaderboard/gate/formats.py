"""A gate's report for machines and reviews: Markdown for a pull request, JUnit XML for a test report.

What comes from files (names of models, tasks and recipes, reasons) is untrusted. In Markdown it stands in code spans,
where neither links, images, HTML nor mentions mean anything; in XML it is escaped, without the characters that XML
forbids.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from leaderboard.gate.decision import EXIT_CODES, GateRow
from leaderboard.gate.report import GateReport
from leaderboard.gate.table import groups, notes, summary
from leaderboard.terminal.format import number, signed
from leaderboard.terminal.output import markdown_code

_MARKS = {
    "PASS": "PASS",
    "WARN": "**WARN**",
    "FAIL": "**FAIL**",
    "UNDECIDED": "**UNDECIDED**",
    "INCOMPARABLE": "**INCOMPARABLE**",
}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def markdown(report: GateReport) -> str:
    """The report as Markdown, with a final newline."""
    lines = [
        f"### Gate: {_MARKS[report.verdict]}",
        *([] if report.decision == "rows" else ["", f"Decided {summary(report)}."]),
        "",
        f"{_code(report.recipe)} on {_code(report.model)}, run {_code(report.candidate[:12])}",
        "",
    ]
    for compared in report.baselines:
        lines += [f"Against **{compared.title}**: {_code(compared.recipe)}, {_code(compared.how)}", ""]
        for title, rows in groups(report, compared):
            lines += [title, ""] if title else []
            lines += [
                "| task | baseline | now | change | at worst | margin | verdict |",
                "|---|---:|---:|---:|---:|---:|---|",
                *map(_markdown_row, rows),
                "",
            ]
        rows = report.rows_of(compared)
        lines += [f"- {_code(row.name)}: {'; '.join(map(_code, notes(row)))}" for row in rows if row.verdict != "PASS"]
        if any(row.got_worse for row in rows):
            lines += [
                "",
                "What changed:",
                *(
                    f"- {change.what}: {_code(change.before)} became {_code(change.after)}"
                    for change in compared.changes
                ),
            ]
            lines += [f"- {_code(finding)}" for finding in compared.findings] or (
                [] if compared.changes else ["- nothing that either run says of itself"]
            )
        lines.append("")
    lines.append(
        f"Change: above 0 is better, below 0 worse. At worst: its one-sided limit at {100 * report.alpha:g} %. PASS"
        " where that is less than the margin below 0; significance by Holm over all rows."
    )
    return "\n".join(lines) + "\n"


def _markdown_row(row: GateRow) -> str:
    name = _code(row.name) + (" (critical)" if row.critical else "")
    name += " (unpaired)" if row.unpaired else ""
    return (
        f"| {name} | {number(row.baseline_score)} | {number(row.score)} | {signed(row.change)}"
        f" | {signed(row.change_at_worst)} | {number(row.margin)} | {_MARKS[row.verdict]} |"
    )


def _code(text: str) -> str:
    return markdown_code(text) or "` `"


def junit(report: GateReport) -> str:
    """The report as JUnit XML: a suite for each baseline, a case for each row. FAIL is a failure. INCOMPARABLE is an
    error, and so is UNDECIDED: both stop the gate, and readers of JUnit let skipped cases pass. An undecided row that
    only informs is skipped. A case with property `decides` false only informs.
    """
    root = ElementTree.Element("testsuites", name="gate")
    for compared in report.baselines:
        rows = report.rows_of(compared)
        elements = [_element(row) for row in rows]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_xml(f"{report.recipe} on {report.model} against {compared.title}"),
            tests=str(len(rows)),
            failures=str(elements.count("failure")),
            errors=str(elements.count("error")),
            skipped=str(elements.count("skipped")),
        )
        for row in rows:
            _case(suite, row, report, compared.title)
    return _document(root)


def junit_of_error(message: str) -> str:
    """A JUnit file with the error that kept the gate from judging, so that no earlier file stands for it."""
    root = ElementTree.Element("testsuites", name="gate")
    suite = ElementTree.SubElement(root, "testsuite", name="gate", tests="1", failures="0", errors="1", skipped="0")
    case = ElementTree.SubElement(suite, "testcase", classname="gate", name="gate", time="0")
    ElementTree.SubElement(case, "error", message=_xml(message), type="ERROR")
    return _document(root)


def _document(root: ElementTree.Element) -> str:
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _element(row: GateRow) -> str | None:
    """What a row is in JUnit besides a case: nothing where it does not stop the gate, unless it was left open."""
    if row.only_unsure:
        return "skipped"
    if row.verdict == "FAIL":
        return "failure"
    return "error" if EXIT_CODES[row.verdict] else None


def _case(suite: ElementTree.Element, row: GateRow, report: GateReport, against: str) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=_xml(f"{report.model}.{against}"), name=_xml(row.name), time="0"
    )
    if report.decision == "overall":
        properties = ElementTree.SubElement(case, "properties")
        ElementTree.SubElement(properties, "property", name="decides", value=str(row.decides).lower())
    element = _element(row)
    said = [
        f"{row.verdict}: change {signed(row.change)}, at worst {signed(row.change_at_worst)}, margin"
        f" {number(row.margin)}",
        *(["informs: the overall margin decides for it"] if row.only_unsure else []),
        *notes(row),
    ]
    if element is None:
        ElementTree.SubElement(case, "system-out").text = _xml("\n".join(said))
    else:
        found = ElementTree.SubElement(case, element, message=_xml(row.reasons[0] if row.reasons else row.verdict))
        found.text = _xml("\n".join(said))
        if element != "skipped":
            found.set("type", row.verdict)


def _xml(text: str) -> str:
    return _NOT_XML.sub(" ", text)
