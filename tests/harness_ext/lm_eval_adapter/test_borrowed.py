"""lm-eval still has everything that is borrowed from it, and only the adapter names its private parts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness_ext.lm_eval_adapter import borrowed
from harness_ext.lm_eval_adapter.borrowed import BORROWED, BorrowedName, BorrowedNameGone, problem, replaced

PRIVATE_MODULE = re.compile(r"lm_eval(\.\w+)*\._\w+")
PRIVATE = {entry.dotted for entry in BORROWED if not entry.public}
PRIVATE_ATTRIBUTES = {
    name
    for entry in BORROWED
    for name in (entry.name.rpartition(".")[2], *entry.members, *entry.replaced)
    if (name.startswith("_") and not name.startswith("__")) or name in entry.replaced
}


# The table


@pytest.mark.parametrize("entry", BORROWED, ids=lambda entry: entry.dotted)
def test_lm_eval_still_has(entry: BorrowedName) -> None:
    assert problem(entry) is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            BorrowedName("lm_eval._gone:Run", "add flags"),
            r"lm-eval's lm_eval\._gone\.Run is gone \(.*\); it is used to",
        ),
        (BorrowedName("lm_eval.utils:gone", "add flags"), r"lm_eval\.utils\.gone is gone .* used to add flags"),
        (
            BorrowedName("lm_eval.utils:hash_string", "hash", ("text",)),
            "hash_string takes no 'text'; it is used to hash",
        ),
        (BorrowedName("lm_eval.tasks._index:Entry", "read", members=("cfg", "path")), "Entry has no 'path'; "),
        (
            BorrowedName("lm_eval.evaluator", "look up", source=("import git!",)),
            "evaluator no longer says 'import git!'",
        ),
    ],
)
def test_a_name_that_moved_is_told_with_its_purpose(entry: BorrowedName, words: str) -> None:
    text = problem(entry)
    assert text is not None and re.search(words, text)


def test_names_are_given_under_one_name_each() -> None:
    from lm_eval._cli import HarnessCLI

    names = [entry.name for entry in BORROWED]
    assert len(names) == len(set(names))
    assert borrowed.HarnessCLI is HarnessCLI
    with pytest.raises(AttributeError, match="borrows nothing called 'Nothing'"):
        borrowed.Nothing  # noqa: B018 - the access raises


def test_a_name_that_is_gone_is_told_where_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowed, "BORROWED", (BorrowedName("lm_eval._cli:Gone", "add flags"),))
    with pytest.raises(BorrowedNameGone, match=r"lm_eval\._cli\.Gone is gone .* used to add flags"):
        from harness_ext.lm_eval_adapter.borrowed import Gone  # noqa: F401


def test_only_what_the_table_lists_is_replaced() -> None:
    from lm_eval import evaluator

    before = evaluator.get_git_commit_hash
    with pytest.raises(ZeroDivisionError), replaced(evaluator, "get_git_commit_hash", "ours"):
        assert evaluator.get_git_commit_hash == "ours"
        raise ZeroDivisionError
    assert evaluator.get_git_commit_hash is before
    with pytest.raises(AssertionError, match=r"lm_eval\.evaluator\.simple_evaluate is not in the table"):
        replaced(evaluator, "simple_evaluate", "ours").__enter__()


def test_every_method_of_lm_evals_that_ours_overrides_is_in_the_table() -> None:
    from lm_eval.models.huggingface import HFLM

    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.lm_eval_adapter.loaded_model import LoadedModel

    ours = {**vars(RecipeLM), **vars(LoadedModel)}
    overridden = {name for name in ours if name.startswith("_") and hasattr(HFLM, name)}
    listed = {entry.name.removeprefix("HFLM.") for entry in BORROWED if entry.name.startswith("HFLM.")}
    assert {name for name in overridden if not name.startswith("__") and name != "_abc_impl"} <= listed


def test_the_doctor_tells_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness_ext.cli.doctor import borrowed_names

    gone = BorrowedName("lm_eval._cli:Gone", "add flags")
    slow = BorrowedName("lm_eval.tasks._index:Gone", "find tasks", optional=True)
    monkeypatch.setattr(borrowed, "BORROWED", (gone, slow))
    failed, noted = borrowed_names()
    assert failed.level == "FAIL" and "lm_eval._cli.Gone is gone" in failed.text and "install a version" in failed.text
    assert noted.level == "note" and "it is used to find tasks: without it starts are slow" in noted.text
    monkeypatch.setattr(borrowed, "BORROWED", (BorrowedName("lm_eval.utils:hash_string", "hash"),))
    (fine,) = borrowed_names()
    assert fine == ("ok", "lm-eval has all 1 names that this package relies on")


# The sources


def sources(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module below a folder, by its path, with its syntax tree."""
    for path in sorted(folder.rglob("*.py")):
        yield str(path.relative_to(folder)), ast.parse(path.read_text(encoding="utf-8"))


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines with an import of a private part of lm-eval, or its name in a string that is no docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and id(node) not in docstrings and isinstance(node.value, str | bytes):
            text = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
            names = [match[0] for match in PRIVATE_MODULE.finditer(text)]
        yield from ((node.lineno, name) for name in names if PRIVATE_MODULE.match(name) or name in PRIVATE)


def private_attributes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines that reach for a private attribute of lm-eval on anything but the module's own object."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in PRIVATE_ATTRIBUTES:
            continue
        if not isinstance(node.value, ast.Name) or node.value.id not in ("self", "cls"):
            yield node.lineno, node.attr


@pytest.mark.slow
def test_only_the_adapter_names_private_parts_of_lm_eval(repository: Path) -> None:
    wrong = [
        f"{path}:{line} {name}"
        for path, tree in sources(repository / "harness_ext")
        if not path.startswith("lm_eval_adapter/")
        for line, name in (*private_names(tree), *private_attributes(tree))
    ]
    assert wrong == []


def test_within_the_adapter_the_table_alone_names_them(repository: Path) -> None:
    wrong = [
        f"{path}:{line} {name}"
        for path, tree in sources(repository / "harness_ext" / "lm_eval_adapter")
        if path != "borrowed.py"
        for line, name in private_names(tree)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "source",
    [
        "from lm_eval._cli.run import Run",
        "import lm_eval.tasks._index as index",
        "def later():\n    from lm_eval.api.registry import model_registry",
        "def encode(lm):\n    return lm._encode_pair('a', 'b')",
        "logging.getLogger('lm_eval.tasks._index')",
        "script = b'from lm_eval.__main__ import cli'",
        "manager.TaskIndex = None",
    ],
)
def test_every_way_to_name_a_private_part_is_noticed(source: str) -> None:
    tree = ast.parse(source)
    assert [*private_names(tree), *private_attributes(tree)]


def test_what_is_not_private_is_let_pass() -> None:
    source = '"""Like `lm_eval._cli`."""\nfrom lm_eval.utils import hash_string\nself._model = lm.model\n'
    tree = ast.parse(source)
    assert [*private_names(tree), *private_attributes(tree)] == []
