"""The gate as people and machines meet it: its four forms, its command, and the workflow and policy of its README."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from leaderboard import __main__ as module
from leaderboard.gate import formats, table
from leaderboard.gate.decision import EXIT_CODES, GateRow, overall
from leaderboard.gate.policy import policy_from
from leaderboard.gate.report import Compared, GateReport
from leaderboard.ingest import ingest
from leaderboard.store.database import open_store
from tests.leaderboard.gate.gating import NOWHERE, gated, row, two

HOSTILE = "`x` | [a](http://b) <script>alert(1)</script> @all \x1b[31m \x00 \ud800 **b**"


class TestForms:
    """For people, pull requests and machines."""

    def report(self, made: Any, kit: Any, task: str = "sums", label: str = "laser") -> GateReport:
        good, bad = kit.pair(400, 200), kit.pair(400, 200, lost=60)
        few = kit.pair(40, 20, lost=1, gained=1)
        base = made.run("baseline", {"good": good[0], task: bad[0], "few": few[0]})
        laser = made.run("laser", {"good": good[1], task: bad[1], "few": few[1]})
        receipt = json.loads((laser / "receipt.json").read_text())
        receipt["recipe"]["label"] = label
        (laser / "receipt.json").write_text(json.dumps(receipt))
        return gated(laser, base, tasks={"good": {"critical": True}, "absent": {}})

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [80, 120])
    def test_the_table_fits(self, made: Any, kit: Any, width: int) -> None:
        text = table.render(
            self.report(made, kit, "a_task_with_a_name_that_is_much_too_long_for_a_column_of_eighty"), width=width
        )
        assert max(map(len, text.splitlines())) <= width and text.isascii()
        assert text.splitlines()[-1] == "FAIL, exit code 1: 2 of 4 rows"
        for words in (
            "good *",
            "60 lost, 0 gained",
            "worse by more than the margin",
            "What changed since that run:",
            "recipe: baseline -> laser",
            "required, and the candidate has not run it",
        ):
            assert words in text, text

    @pytest.mark.slow
    def test_colour_only_when_asked_for(self, made: Any, kit: Any) -> None:
        report = self.report(made, kit)
        assert "\x1b" not in table.render(report) and "\x1b[31;1mFAIL\x1b[0m" in table.render(report, color=True)

    @pytest.mark.slow
    def test_json(self, made: Any, kit: Any) -> None:
        data = json.loads(self.report(made, kit).to_json())
        assert (data["verdict"], data["exit_code"], data["baselines"][0]["changes"][0]["what"]) == ("FAIL", 1, "recipe")
        assert {row["name"]: row["verdict"] for row in data["rows"]} == {
            "good": "PASS",
            "absent": "FAIL",
            "sums": "FAIL",
            "few": "UNDECIDED",
        }

    @pytest.mark.slow
    def test_junit(self, made: Any, kit: Any) -> None:
        root = ElementTree.fromstring(formats.junit(self.report(made, kit)))
        (suite,) = root
        assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
            "tests": "4",
            "failures": "2",
            "errors": "1",
            "skipped": "0",
        }
        assert {case.get("name"): [child.tag for child in case] for case in suite} == {
            "good": ["system-out"],
            "absent": ["failure"],
            "sums": ["failure"],
            "few": ["error"],
        }

    def test_whatever_stops_the_gate_is_no_pass_in_junit(self) -> None:
        """Readers of JUnit let skipped cases pass, and look at the counts of suites or at the cases."""
        for verdict, code in EXIT_CODES.items():
            for decides in (True, False):
                row = GateRow("base", "sums", baseline="b", verdict=verdict, decides=decides)
                stops = bool(code) and not row.only_unsure
                assert bool(EXIT_CODES[overall([row])]) == stops
                compared = Compared("base", "b", "baseline", "path", "how", (), ())
                known = ("m", "laser", "c", "path", 0.05, (compared,), (row,), "overall")
                (suite,) = ElementTree.fromstring(formats.junit(GateReport(overall([row]), code, *known)))
                assert (suite.get("failures") != "0" or suite.get("errors") != "0") == stops
                assert (suite.find(".//failure") is not None or suite.find(".//error") is not None) == stops
                assert (suite.find(".//skipped") is not None) == (suite.get("skipped") == "1") == row.only_unsure

    @pytest.mark.slow
    def test_markdown(self, made: Any, kit: Any) -> None:
        text = formats.markdown(self.report(made, kit))
        assert (
            text.startswith("### Gate: **FAIL**\n")
            and "| `good` (critical) | 0.5000 | 0.5000 | 0.0000 |" in text
            and "recipe: `baseline` became `laser`" in text
        )

    @pytest.mark.slow
    def test_hostile_names_stay_names(self, made: Any, kit: Any) -> None:
        report = self.report(made, kit, label=HOSTILE)
        ElementTree.fromstring(formats.junit(report))
        for text in (formats.markdown(report), table.render(report)):
            assert not set(text) & {"\x1b", "\x00", "\ud800"}
        for line in formats.markdown(report).splitlines():
            outside = "".join(line.split("`")[::2])  # what is not in a code span
            assert line.count("`") % 2 == 0 and not any(mark in outside for mark in ("<", "](", "@")), line


class TestCommand:
    """The command itself, without lm-eval."""

    def files(self, made: Any, kit: Any, tmp_path: Path, **options: Any) -> tuple[Path, Path, Path]:
        base, laser = two(made, *kit.pair(400, 200, **options))
        (tmp_path / "gate.yaml").write_text("tasks: {sums: {critical: true}}\n")
        return base, laser, tmp_path / "gate.yaml"

    def run(self, policy: Path, laser: Path, *words: object, database: Path = NOWHERE) -> int:
        return module.main(
            ["gate", "--policy", str(policy), "--candidate", str(laser), "--database", str(database), *map(str, words)]
        )

    @pytest.mark.slow
    def test_exit_codes_and_forms(
        self, made: Any, kit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        base, laser, policy = self.files(made, kit, tmp_path, lost=60)
        assert self.run(policy, laser, "--baseline", base, "--junit", tmp_path / "junit.xml") == 1
        assert (
            "FAIL, exit code 1" in capsys.readouterr().out
            and ElementTree.parse(tmp_path / "junit.xml").getroot().tag == "testsuites"
        )
        assert (
            self.run(policy, laser, "--baseline", base, "--json") == 1
            and json.loads(capsys.readouterr().out)["verdict"] == "FAIL"
        )
        assert self.run(policy, laser, "--baseline", base, "--markdown") == 1 and capsys.readouterr().out.startswith(
            "### Gate"
        )
        assert self.run(policy, laser, "--baseline", tmp_path / "none") == 2 and capsys.readouterr().err.startswith(
            "error: baseline "
        )
        assert self.run(tmp_path / "none.yaml", laser) == 2 and "cannot be read" in capsys.readouterr().err
        assert (
            self.run(policy, laser, "--junit", tmp_path / "no" / "junit.xml") == 2
            and "cannot be written" in capsys.readouterr().err
        )
        assert not NOWHERE.parent.exists()

    @pytest.mark.slow
    def test_a_gate_that_cannot_judge_leaves_no_earlier_junit_file(
        self, made: Any, kit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        base, laser, policy = self.files(made, kit, tmp_path)
        file = tmp_path / "junit.xml"
        assert self.run(policy, laser, "--baseline", base, "--junit", file) == 0
        assert "<error" not in file.read_text()
        assert self.run(policy, laser, "--baseline", tmp_path / "none", "--junit", file) == 2
        (suite,) = ElementTree.parse(file).getroot()
        (error,) = suite.iter("error")
        assert suite.get("errors") == "1" and str(error.get("message")) in capsys.readouterr().err

    @pytest.mark.slow
    def test_decisions_are_recorded_where_there_is_a_database(
        self, made: Any, kit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, laser, policy = self.files(made, kit, tmp_path, lost=60)
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        for _ in range(2):
            assert self.run(policy, laser, database=database) == 1
        ingest([made.root], database, rebuild=True)
        with open_store(database) as store:
            rows = store.rows("SELECT * FROM gate_runs ORDER BY gated_at")
        assert [(r["verdict"], r["exit_code"], r["recipe_label"], r["model_name"]) for r in rows] == [
            ("FAIL", 1, "laser", "tiny")
        ] * 2
        assert (
            json.loads(rows[0]["policy"])["tasks"]["sums"]["critical"] is True
            and json.loads(rows[0]["report"])["rows"][0]["lost"] == 60
        )
        assert capsys.readouterr().err == ""

    @pytest.mark.slow
    def test_a_busy_database(
        self, made: Any, kit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, laser, policy = self.files(made, kit, tmp_path, lost=60)
        database = made.root / "leaderboard.duckdb"
        ingest([made.root], database)
        monkeypatch.setattr("leaderboard.gate.report.RECORD_PATIENCE_SECONDS", 0.05)
        monkeypatch.setattr("leaderboard.gate.runs.PATIENCE_SECONDS", 0.05)
        monkeypatch.setattr("leaderboard.gate.report.PATIENCE_SECONDS", 0.05)
        holder = subprocess.Popen(
            [
                sys.executable,
                "-c",
                (
                    f"import duckdb, time; c = duckdb.connect({str(database)!r}); print('held', flush=True);"
                    " time.sleep(60)"
                ),
            ],
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            assert self.run(policy, laser, "--baseline", base, database=database) == 1
            said = capsys.readouterr()
            assert (
                "FAIL, exit code 1" in said.out
                and f"note: this decision was not recorded: {database} is busy: process {holder.pid}" in said.err
            )
            assert self.run(policy, laser, database=database) == 2
            assert capsys.readouterr().err.startswith(f"error: {database} is busy")
        finally:
            holder.kill()
            holder.communicate()

    @pytest.mark.slow
    def test_two_folders_are_enough_without_torch_or_lm_eval(
        self, made: Any, kit: Any, tmp_path: Path, repository: Path
    ) -> None:
        base, laser, policy = self.files(made, kit, tmp_path, lost=60)
        code = (
            "import sys\nclass Refuse:\n    def find_spec(self, name, path=None, target=None):\n        if"
            " name.partition('.')[0] in ('torch', 'lm_eval', 'transformers', 'harness_ext', 'streamlit'): raise"
            " ImportError(f'{name} was asked for')\nsys.meta_path.insert(0, Refuse())\nfrom leaderboard.__main__ import"
            " main\nsys.exit(main(sys.argv[1:]))\n"
        )
        words = [sys.executable, "-c", code, "gate", "--policy", policy, "--candidate", laser, "--baseline", base]
        done = subprocess.run(
            list(map(str, words)),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1 and done.stderr == "" and "FAIL, exit code 1" in done.stdout


@pytest.mark.slow
def test_the_noise_floor_of_the_database_is_shown(made: Any, kit: Any) -> None:
    before, after = kit.pair(400, 200, lost=60)
    again = kit.pair(400, 200, lost=1, gained=1)[1]
    again.log_likelihoods = kit.likelihoods(400, 3)
    _, laser = two(made, before, after)
    made.run(
        "baseline",
        {"sums": again},
        folder="other_size",
        spec_id="size",
        settings_id="size",
        config={"batch_size": 16},
        started="2026-05-01T00:00:00Z",
    )
    database = made.root / "leaderboard.duckdb"
    ingest([made.root], database)
    report = gated(laser, database=database)
    assert row(report).noise_floor == pytest.approx(2 / 400)
    assert "flips 15.0%, noise floor 0.5%: 14.5 points above it" in table.render(report)


def workflow(text: str) -> dict[str, Any]:
    """The GitHub workflow in the README of the gate."""
    (block,) = [
        block.partition("\n")[2] for block in text.split("```")[1::2] if block.startswith("yaml") and "jobs:" in block
    ]
    found = yaml.load(block, yaml.BaseLoader)  # BaseLoader: `on` stays a word
    assert isinstance(found, dict)
    return found


def test_the_workflow_of_the_readme_uses_commands_that_exist(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    pytest.importorskip("lm_eval")
    from harness_ext.cli import RecipesCLI

    found = workflow((repository / "leaderboard/gate/README.md").read_text(encoding="utf-8"))
    assert set(found) >= {"on", "jobs"}
    (job,) = found["jobs"].values()
    lines = [line for step in job["steps"] for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if "lm_eval " in line]
    assert [words[1] for words in commands] == ["ingest", "baseline", "run", "gate"]
    parser = RecipesCLI()._parser
    for words in commands:
        words = words[: next((i for i, word in enumerate(words) if word in (">", ">>", "|", "||", "|&")), None)]
        assert parser.parse_args(words[1:]).func is not None
    names = {step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step}
    assert "actions/checkout" in names


def test_the_policies_of_the_readme_are_some(repository: Path) -> None:
    text = (repository / "leaderboard/gate/README.md").read_text(encoding="utf-8")
    policies = []
    for name in ("gate.yaml", "many-tasks.yaml"):
        start = text.index(f"```yaml\n# {name}\n") + len("```yaml\n")
        policies.append(policy_from(yaml.safe_load(text[start : text.index("```", start)]), "README"))
    by_rows, by_mean = policies
    assert by_rows.tasks and by_rows.suites and by_rows.overall is None
    assert by_mean.overall is not None and by_mean.averaged == ("int_sum_clean", "int_mult_clean", "int_sum")
