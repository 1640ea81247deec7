"""What a task is: every kind of change of its configuration, code or documents gives it another identity, within one
process too, and no other difference does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness_ext.lm_eval_adapter import task_identity
from harness_ext.lm_eval_adapter.task_loading import load_tasks

if TYPE_CHECKING:
    from lm_eval.api.task import Task

ROWS = [{"q": f"{number} plus 3 is", "a": str(number + 3)} for number in range(8)]
YAML = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/test.jsonl, train: DIR/train.jsonl}}
test_split: test
output_type: generate_until
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
metadata: {version: 1}
"""
SCORED = """process_results: !function utils.score
metric_list: [{metric: exact, aggregation: mean, higher_is_better: true}]
"""
PLAIN = "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
ON_PATH = "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent))\n"
SCORE = "def score(doc, results):\n    return {'exact': VALUE}\n"

Files = Mapping[str, str]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Modules, import paths and caches as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def write(folder: Path, files: Files) -> None:
    """A task's folder; the task is `own.yaml`, and its documents are ROWS unless the files say otherwise."""
    given = {"test.jsonl": lines(ROWS), "train.jsonl": lines(ROWS[::-1]), **files}
    for name, text in given.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("DIR", str(folder)), encoding="utf-8")


def load(folder: Path, shots: int = 0) -> tuple[Task, str]:
    """The task of a folder as a command builds it, and its identity."""
    from lm_eval.tasks import TaskManager

    loaded, record = load_tasks(TaskManager(include_path=str(folder), include_defaults=False), ["own"])
    task = loaded["tasks"]["own"]
    return task, task_identity.task_identity(task, record, shots)


def scored(**files: str) -> Files:
    """A task with a scorer in `utils.py`."""
    return {"own.yaml": YAML + SCORED, **{name.replace("_py", ".py"): text for name, text in files.items()}}


def helper(importing: str, value: str = "helper.VALUE", place: str = "helper.py") -> tuple[Files, Files]:
    """A scorer that has its value from a module beside it, before and after that was changed."""
    utils = f"{ON_PATH}{importing}\n" + SCORE.replace("VALUE", value)
    return (
        {"own.yaml": YAML + SCORED, "utils.py": utils, place: "VALUE = 1.0\n"},
        {"own.yaml": YAML + SCORED, "utils.py": utils, place: "VALUE = 0.0\n"},
    )


LAZY = f"{ON_PATH}def score(doc, results):\n    import helper\n    return {{'exact': helper.VALUE}}\n"
COMPUTED = "import importlib\nNAME = 'hel' + 'per'\nhelper = importlib.import_module(NAME)"
BY_PATH = """import importlib.util, pathlib
spec = importlib.util.spec_from_file_location("other", pathlib.Path(__file__).with_name("helper.py"))
helper = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helper)"""
SCORERS: dict[str, tuple[Files, Files]] = {
    "a function that the scorer calls": tuple(
        scored(utils_py=f"def inner():\n    return {value}\n" + SCORE.replace("VALUE", "inner()"))
        for value in (1.0, 0.0)
    ),
    "a constant": tuple(scored(utils_py=f"X = {value}\n" + SCORE.replace("VALUE", "X")) for value in (1.0, 0.0)),
    "a lambda": tuple(scored(utils_py=f"score = lambda doc, results: {{'exact': {v}}}\n") for v in (1.0, 0.0)),
    "an argument of a partial": tuple(
        scored(
            utils_py="import functools\ndef _score(value, doc, results):\n    return {'exact': value}\n"
            f"score = functools.partial(_score, {value})\n"
        )
        for value in (1.0, 0.0)
    ),
    "what a closure holds": tuple(
        scored(
            utils_py="def make(value):\n    def inner(doc, results):\n        return {'exact': value}\n"
            f"    return inner\nscore = make({value})\n"
        )
        for value in (1.0, 0.0)
    ),
    "a decorator of another module": helper("import helper\n", "1.0 * helper.VALUE"),
    "a module": helper("import helper"),
    "a name of a module": helper("from helper import VALUE", "VALUE"),
    "a module of a package": helper("import kit.core as helper", place="kit/core.py"),
    "a package": helper("import kit", "kit.VALUE", place="kit/__init__.py"),
    "a module loaded by a computed name": helper(COMPUTED),
    "a module loaded from its file": helper(BY_PATH),
    "a module imported when an answer is scored": (
        scored(utils_py=LAZY, helper_py="VALUE = 1.0\n"),
        scored(utils_py=LAZY, helper_py="VALUE = 0.0\n"),
    ),
    "a module that a package imports relatively": (
        {**helper("import kit", "kit.VALUE", place="kit/low.py")[0], "kit/__init__.py": "from .low import VALUE\n"},
        {**helper("import kit", "kit.VALUE", place="kit/low.py")[1], "kit/__init__.py": "from .low import VALUE\n"},
    ),
    "a module that a module imports": (
        {**helper("import helper", place="deep.py")[0], "helper.py": "from deep import VALUE\n"},
        {**helper("import helper", place="deep.py")[1], "helper.py": "from deep import VALUE\n"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCORERS)
def test_another_scorer_is_another_task_and_is_the_one_that_scores(kind: str, tmp_path: Path) -> None:
    before, after = SCORERS[kind]
    write(tmp_path / "t", before)
    first, identity = load(tmp_path / "t")
    assert first.process_results(ROWS[0], ["4"]) == {"exact": 1.0}
    assert load(tmp_path / "t")[1] == identity
    write(tmp_path / "t", after)
    second, changed = load(tmp_path / "t")
    assert changed != identity
    assert second.process_results(ROWS[0], ["4"]) == {"exact": 0.0}
    write(tmp_path / "t", before)
    assert load(tmp_path / "t")[1] == identity


@pytest.mark.slow
def test_a_module_replaced_under_its_old_date_and_size_is_noticed(tmp_path: Path) -> None:
    before, after = SCORERS["a module"]
    write(tmp_path / "t", before)
    path = tmp_path / "t" / "helper.py"
    dates = path.stat()
    _, identity = load(tmp_path / "t")
    write(tmp_path / "t", after)
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert path.stat().st_size == dates.st_size
    task, changed = load(tmp_path / "t")
    assert changed != identity and task.process_results(ROWS[0], ["4"]) == {"exact": 0.0}


def test_a_stale_compiled_file_is_not_run(tmp_path: Path) -> None:
    import py_compile

    before, after = SCORERS["a module"]
    write(tmp_path / "t", before)
    for name in ("utils.py", "helper.py"):
        py_compile.compile(str(tmp_path / "t" / name))
    dates = (tmp_path / "t" / "helper.py").stat()
    write(tmp_path / "t", after)
    os.utime(tmp_path / "t" / "helper.py", ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert load(tmp_path / "t")[0].process_results(ROWS[0], ["4"]) == {"exact": 0.0}


def test_a_module_that_the_process_had_before_is_loaded_anew(tmp_path: Path) -> None:
    before, after = SCORERS["a module"]
    write(tmp_path / "t", before)
    sys.path.insert(0, str(tmp_path / "t"))
    import helper as theirs  # type: ignore[import-not-found]

    write(tmp_path / "t", after)
    task, _ = load(tmp_path / "t")
    assert task.process_results(ROWS[0], ["4"]) == {"exact": 0.0}
    assert theirs.VALUE == 1.0


@pytest.mark.slow
def test_helpers_of_one_name_in_two_folders_are_kept_apart(tmp_path: Path) -> None:
    for place, (folder, lazily) in enumerate((("a", False), ("b", False), ("c", True), ("d", True))):
        files = SCORERS["a module imported when an answer is scored" if lazily else "a module"][place % 2]
        write(tmp_path / folder, files)
        task, _ = load(tmp_path / folder)
        assert task.process_results(ROWS[0], ["4"]) == {"exact": 1.0 - place % 2}


@pytest.mark.slow
def test_a_task_scores_as_before_after_another_was_loaded_beside_it(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    write(tmp_path / "t", SCORERS["a module imported when an answer is scored"][0])
    task, _ = load(tmp_path / "t")
    write(tmp_path / "u", {"own.yaml": YAML + PLAIN})
    load_tasks(TaskManager(include_path=str(tmp_path / "u"), include_defaults=False), ["own"], more=True)
    assert task.process_results(ROWS[0], ["4"]) == {"exact": 1.0}


METRIC = "metric_list: [{metric: !function utils.metric, aggregation: mean, higher_is_better: true}]\n"
AGGREGATION = "metric_list: [{metric: exact_match, aggregation: !function utils.total, higher_is_better: true}]\n"
FILTER = PLAIN + "filter_list: [{name: own, filter: [{function: own_filter}]}]\nprocess_docs: !function utils.docs\n"
FILTERING = """from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter
def docs(dataset):
    return dataset
@register_filter("own_filter")
class Own(Filter):
    def apply(self, resps, docs):
        return [[VALUE] for _ in resps]
"""
SAMPLER = PLAIN + "num_fewshot: 1\nfewshot_config: {split: train, sampler: !function utils.Own}\n"
SAMPLING = """from lm_eval.api.samplers import ContextSampler
class Own(ContextSampler):
    def sample(self, n, eval_doc=None, df=None, **kwargs):
        return list(self.df)[VALUE:][:n]
"""
CLASS = "class: !function utils.Own\n" + PLAIN
A_CLASS = """from lm_eval.api.task import ConfigurableTask
class Own(ConfigurableTask):
    def __init__(self, config):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
    def process_results(self, doc, results):
        return {"exact_match": VALUE}
"""
DOCS = PLAIN + "process_docs: !function utils.docs\n"
MAPPED = f"""{ON_PATH}from helper import VALUE
def _one(row):
    return {{'q': row['q'] + VALUE}}
def docs(rows):
    return rows.map(_one)
"""
CUSTOM = YAML.replace("dataset_path: json\n", "custom_dataset: !function utils.make\n") + PLAIN
MADE = """import pathlib
from datasets import Dataset, DatasetDict
def rows():
    for line in pathlib.Path(__file__).with_name("words.txt").read_text().split():
        yield {"q": line, "a": line}
def make(**kwargs):
    return DatasetDict(test=Dataset.from_generator(rows))
"""
READING = "import json, pathlib\nHERE = pathlib.Path(__file__).parent\n"
SHOWN = PLAIN.replace("metric_list", "doc_to_text: !function utils.text\nmetric_list")
ABOVE = "include: common/base\ntask: own\n"
FIRST_KIND = """import json
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
class Own(Task):
    VERSION = 1
    OUTPUT_TYPE = "loglikelihood"
    DATASET_PATH = "json"
    def __init__(self, config):
        super().__init__(config=config)
    def download(self, *arguments, **named):
        self.rows = [{"q": "a", "a": "b"}]
    def has_training_docs(self):
        return False
    def has_validation_docs(self):
        return False
    def has_test_docs(self):
        return True
    def test_docs(self):
        return self.rows
    def doc_to_text(self, doc):
        return doc["q"]
    def doc_to_target(self, doc):
        return doc["a"]
    def construct_requests(self, doc, ctx, **kwargs):
        return []
    def process_results(self, doc, results):
        return {"acc": VALUE}
    def aggregation(self):
        return {"acc": max}
    def higher_is_better(self):
        return {"acc": True}
"""
NO_TEXT = YAML.replace('doc_to_text: "{{q}}"\n', "")


def two(yaml: str, **files: tuple[str, str] | str) -> tuple[Files, Files]:
    """A task before and after; a file with one text does not change."""
    pairs = {
        name.replace("_py", ".py").replace("_txt", ".txt").replace("_jsonl", ".jsonl").replace("_yaml", ".yaml"): (
            (text, text) if isinstance(text, str) else text
        )
        for name, text in files.items()
    }
    return tuple({"own.yaml": yaml, **{name: pair[place] for name, pair in pairs.items()}} for place in (0, 1))  # type: ignore[return-value]


def valued(text: str, first: str = "1", second: str = "2") -> tuple[str, str]:
    return text.replace("VALUE", first), text.replace("VALUE", second)


CHANGES: dict[str, tuple[Files, Files]] = {
    "a metric": two(YAML + METRIC, utils_py=valued("def metric(**kwargs):\n    return VALUE\n")),
    "an aggregation": two(YAML + AGGREGATION, utils_py=valued("def total(values):\n    return VALUE\n")),
    "a filter that a module registers": two(YAML + FILTER, utils_py=valued(FILTERING)),
    "a sampler of few-shot examples": two(YAML + SAMPLER, utils_py=valued(SAMPLING)),
    "a class": two(YAML + CLASS, utils_py=valued(A_CLASS)),
    "the name of a function": (
        {
            "own.yaml": YAML + SCORED,
            "utils.py": "score, other = (lambda d, r: {'exact': 1}), (lambda d, r: {'exact': 0})\n",
        },
        {
            "own.yaml": YAML + SCORED.replace("utils.score", "utils.other"),
            "utils.py": "score, other = (lambda d, r: {'exact': 1}), (lambda d, r: {'exact': 0})\n",
        },
    ),
    "a template": ({"own.yaml": YAML + PLAIN}, {"own.yaml": YAML.replace("{{q}}", "{{q}}?") + PLAIN}),
    "settings of generation": ({"own.yaml": YAML + PLAIN}, {"own.yaml": YAML.replace('["."]', '[","]') + PLAIN}),
    "metadata": ({"own.yaml": YAML + PLAIN}, {"own.yaml": YAML.replace("version: 1", "version: 1, cut: 3") + PLAIN}),
    "an included file": two("include: base\ntask: own\n", base=(YAML + PLAIN, YAML.replace("{{q}}", "{{q}}?") + PLAIN)),
    "a text": two(YAML + PLAIN, test_jsonl=(lines(ROWS), lines([*ROWS[:-1], {"q": "?", "a": "1"}]))),
    "an answer": two(YAML + PLAIN, test_jsonl=(lines(ROWS), lines([*ROWS[:-1], {**ROWS[-1], "a": "1"}]))),
    "the order of documents": two(YAML + PLAIN, test_jsonl=(lines(ROWS), lines([ROWS[1], ROWS[0], *ROWS[2:]]))),
    "one more document": two(YAML + PLAIN, test_jsonl=(lines(ROWS), lines(ROWS + ROWS[:1]))),
    "few-shot examples in the file": (
        {"own.yaml": YAML + PLAIN + "num_fewshot: 1\nfewshot_config: {samples: [{q: a, a: b}]}\n"},
        {"own.yaml": YAML + PLAIN + "num_fewshot: 1\nfewshot_config: {samples: [{q: a, a: c}]}\n"},
    ),
    "few-shot examples of a function": two(
        YAML + PLAIN + "num_fewshot: 1\nfewshot_config: {samples: !function utils.some}\n",
        utils_py=valued("def some():\n    return [{'q': 'a', 'a': 'VALUE'}]\n"),
    ),
    "what prepares the documents": two(YAML + DOCS, utils_py=MAPPED, helper_py=("VALUE = 'a'\n", "VALUE = 'b'\n")),
    "the file that documents are made from": two(CUSTOM, utils_py=MADE, words_txt=("a b c", "a b d")),
    "a file that a module reads when it is imported": two(
        NO_TEXT + SHOWN,
        utils_py=READING + "HEAD = (HERE / 'words.txt').read_text()\ndef text(doc):\n    return HEAD + doc['q']\n",
        words_txt=("a", "b"),
    ),
    "a file that is read when a document is asked": two(
        NO_TEXT + SHOWN,
        utils_py=READING
        + "def text(doc):\n    with open(HERE / 'words.txt') as file:\n        return file.read() + doc['q']\n",
        words_txt=("a", "b"),
    ),
    "a module of a folder on the path": two(
        YAML + SCORED,
        utils_py="import sys\nsys.path.append('DIR/lib')\nimport far\n" + SCORE.replace("VALUE", "far.X"),
        **{"lib/far_py": ("X = 1\n", "X = 2\n")},
    ),
    "a module above the task's folder": (
        {"own.yaml": ABOVE, "common/utils.py": SCORE.replace("VALUE", "1"), "common/base": YAML + SCORED},
        {"own.yaml": ABOVE, "common/utils.py": SCORE.replace("VALUE", "2"), "common/base": YAML + SCORED},
    ),
    "a file of prompts": two(
        NO_TEXT.replace('doc_to_target: "{{a}}"\n', "") + PLAIN + "use_prompt: DIR/prompts.yaml:first\n",
        prompts_yaml=valued('prompts: {first: {doc_to_text: "{{q}}VALUE", doc_to_target: "{{a}}"}}\n'),
    ),
    "a file that the metadata name": two(
        YAML.replace("version: 1", "version: 1, words: DIR/words.txt") + PLAIN, words_txt=("a", "b")
    ),
    "a file of another folder by its full path": two(
        YAML + SCORED,
        utils_py="def score(doc, results):\n    return {'exact': len(open('DIR/deep/er/words.txt').read())}\n",
        **{"deep/er/words_txt": ("a", "bb")},
    ),
    "documents that a module filters": two(
        YAML + DOCS,
        utils_py=f"{ON_PATH}import helper\ndef docs(rows):\n    return rows.filter(helper.fits)\n",
        helper_py=valued("def fits(row):\n    return not row['q'].startswith('VALUE')\n"),
    ),
    "a script that is run": two(
        YAML + SCORED,
        utils_py="import subprocess, sys, os\nBY = os.path.join(os.path.dirname(__file__), 'by.py')\n"
        "def score(doc, results):\n    return {'exact': subprocess.run([sys.executable, BY]).returncode}\n",
        by_py=("raise SystemExit(0)\n", "raise SystemExit(1)\n"),
    ),
    "a class of lm-eval's first kind": two("task: own\nclass: !function utils.Own\n", utils_py=valued(FIRST_KIND)),
    "documents of a local folder": two(
        YAML.replace("dataset_path: json", "dataset_path: DIR/rows").replace(
            "dataset_kwargs: {data_files: {test: DIR/test.jsonl, train: DIR/train.jsonl}}\n", ""
        )
        + PLAIN,
        **{"rows/test_jsonl": (lines(ROWS), lines(ROWS[:-1]))},
    ),
    "a file whose name is worked out": two(
        YAML + SCORED,
        utils_py=READING + "def score(doc, results):\n    name = doc['q'][:5] + chr(46) + 'txt'\n"
        "    return {'exact': float((HERE / name).read_text() == '1')}\n",
        words_txt=("1", "2"),
    ),
    "a file of a formatted name": two(
        YAML + SCORED,
        utils_py=READING + "def score(doc, results):\n    return {'exact': len(open(HERE / f'{doc[0]}.txt').read())}\n",
        words_txt=("1", "2"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
def test_another_content_is_another_task(kind: str, tmp_path: Path) -> None:
    before, after = CHANGES[kind]
    shots = int("num_fewshot" in before["own.yaml"])
    write(tmp_path / "t", before)
    _, identity = load(tmp_path / "t", shots)
    assert load(tmp_path / "t", shots)[1] == identity
    write(tmp_path / "t", after)
    assert load(tmp_path / "t", shots)[1] != identity
    write(tmp_path / "t", before)
    assert load(tmp_path / "t", shots)[1] == identity


@pytest.mark.slow
def test_prepared_documents_are_those_of_the_code_on_the_disk(tmp_path: Path) -> None:
    for value in ("1", "2"):
        write(tmp_path / "t", {"own.yaml": YAML + DOCS, "utils.py": MAPPED, "helper.py": f"VALUE = ' {value}'\n"})
        task, _ = load(tmp_path / "t")
        assert task.eval_docs[0]["q"] == f"{ROWS[0]['q']} {value}" == task.eval_docs[0]["q"]


@pytest.mark.slow
def test_generated_documents_are_those_of_the_file_on_the_disk(tmp_path: Path) -> None:
    for word in ("a", "b"):
        write(tmp_path / "t", {"own.yaml": CUSTOM, "utils.py": MADE, "words.txt": word})
        assert [document["q"] for document in load(tmp_path / "t")[0].eval_docs] == [word]


@pytest.mark.slow
def test_documents_replaced_under_their_old_date_and_size_are_read(tmp_path: Path) -> None:
    write(tmp_path / "t", {"own.yaml": YAML + PLAIN})
    path = tmp_path / "t" / "test.jsonl"
    dates = path.stat()
    _, identity = load(tmp_path / "t")
    path.write_text(path.read_text().replace("plus", "pluß"[:3] + "z"))
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert path.stat().st_size == dates.st_size
    task, changed = load(tmp_path / "t")
    assert "pluz" in task.eval_docs[0]["q"] and changed != identity


@pytest.mark.slow
def test_few_shot_documents_count_only_where_there_are_shots(tmp_path: Path) -> None:
    yaml = YAML + PLAIN + "fewshot_split: train\n"
    write(tmp_path / "t", {"own.yaml": yaml})
    without, with_one = load(tmp_path / "t")[1], load(tmp_path / "t", 1)[1]
    write(tmp_path / "t", {"own.yaml": yaml, "train.jsonl": lines(ROWS[:3])})
    assert load(tmp_path / "t")[1] == without
    assert load(tmp_path / "t", 1)[1] != with_one


def _moved(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.parent / "elsewhere" / "deeper"))


def _renamed_data(folder: Path) -> Path:
    (folder / "test.jsonl").rename(folder.parent / "renamed.jsonl")
    yaml = (folder / "own.yaml").read_text()
    (folder / "own.yaml").write_text(yaml.replace(f"{folder}/test.jsonl", f"{folder.parent}/renamed.jsonl"))
    return folder


def _later(folder: Path) -> Path:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() + 100, time.time() + 100))
    return folder


def _with(name: str, text: str = "new\n") -> Callable[[Path], Path]:
    def add(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return folder

    return add


def _with_run(folder: Path) -> Path:
    _with("results/demo/run/receipt.json")(folder)
    return _with("results/demo/run/more.txt")(folder)


SAME: dict[str, Callable[[Path], Path]] = {
    "another folder": _moved,
    "data of another name and place": _renamed_data,
    "later dates": _later,
    "a module that nothing imports": _with("unrelated.py"),
    "results beside it": _with("results_2026.json"),
    "a run folder beside it": _with_run,
    "a training split that nothing uses": _with("train.jsonl", lines(ROWS[:2])),
    "compiled files": _with("__pycache__/utils.pyc"),
}


WORKED_OUT = "def more(name):\n    return (pathlib.Path(__file__).parent / name).read_text()\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    # A name that is worked out may be that of anything in the folder.
    [*((kind, "") for kind in SAME), *((kind, WORKED_OUT) for kind in SAME if kind != "a module that nothing imports")],
)
def test_the_same_content_is_the_same_task(kind: str, more: str, tmp_path: Path) -> None:
    files = dict(SCORERS["a module that a package imports relatively"][0])
    files["utils.py"] = (
        "import pathlib\nHEAD = pathlib.Path(__file__).with_name('words.txt').read_text()\n" + more + files["utils.py"]
    )
    write(tmp_path / "t", {**files, "words.txt": "a"})
    _, identity = load(tmp_path / "t")
    folder = SAME[kind](tmp_path / "t")
    yaml = (folder / "own.yaml").read_text()
    (folder / "own.yaml").write_text(yaml.replace(str(tmp_path / "t"), str(folder)))
    assert load(folder)[1] == identity


@pytest.mark.slow
def test_another_process_gives_the_same_identity(tmp_path: Path) -> None:
    write(tmp_path / "t", {**SCORERS["what a closure holds"][0], "own.yaml": YAML + SCORED + "repeats: 1\n"})
    _, identity = load(tmp_path / "t")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_task_identity as t;"
        "print(t.load(Path(sys.argv[2]))[1])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "t")],
        env={**os.environ, "PYTHONHASHSEED": "7", "HF_DATASETS_CACHE": str(tmp_path / "other")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split()[-1] == identity


def test_ten_thousand_documents_are_hashed_in_under_two_seconds() -> None:
    documents = [
        {"question": f"question {number} " * 20, "choices": ["a", "b"], "answer": number % 2}
        for number in range(10_000)
    ]
    start = time.process_time()
    first = task_identity.documents_digest(documents)
    assert time.process_time() - start < 2
    assert task_identity.documents_digest(documents[::-1]) != first


def test_documents_beyond_json_count_by_content() -> None:
    import numpy as np

    def found(value: Any) -> str:
        return task_identity.documents_digest([{"value": value}])

    class Thing:
        pass

    assert found(np.zeros(3)) != found(np.ones(3)) and found(b"a") != found(b"b")
    assert found({"b", "a"}) == found({"a", "b"}) != found({"a"})
    assert found(Thing()) == found(Thing())
