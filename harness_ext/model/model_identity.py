"""What tells one model from another: the contents of everything that loading it can read; for a hub name the commit.

Only contents count, so a copied folder is the same model, and a retrained one in the same place is another. Of a
model's folder every file counts but those that no loader opens: documents, logs, a trainer's own state. Its subfolders
count where a loader goes into them, and whole where the folder's own code may run (`trust_remote_code`), since that
can read anything. Files that an index names count wherever they lie, and links by what they lead to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness_ext.errors import UserError
from harness_ext.model.checkpoint import hub_commit
from harness_ext.model.file_digests import THREADS, FileDigests

_READ_SUBFOLDERS = ("additional_chat_templates", "custom_generate")
"""Subfolders of a model's folder into which transformers goes by itself."""
_UNREAD_SUFFIXES = frozenset(
    {".md", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pyc", ".log", ".out", ".lock"}
    | {".duckdb", ".wal"}
)
_UNREAD_NAMES = re.compile(
    r"\..*|(licen[cs]e|notice|readme|copying|citation|makefile)"
    r"|events\.out\.tfevents.*|optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth",
    re.IGNORECASE,
)
_UNREAD_FOLDERS = re.compile(r"\..*|__pycache__|checkpoint-\d+")
_PLACES_TO_WRITE = ("offload_folder", "cache_dir")
_MODELS = ("pretrained", "peft", "delta", "tokenizer", "config")
"""Arguments that name a folder or a hub name; any other counts where it is the path of something that is there."""
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_HUB_FILES = {"peft": ("adapter_config.json",), "tokenizer": (*_TOKENIZER_FILES, "config.json")}
"""The files by which a hub repository that is no model's is found, in order."""


class ModelReader:
    """Identities of models. A file is hashed once, and again only where its stamp changed (see `file_digests`).

    left_out: a folder to leave out wherever it lies, that of the results. digests: others than of whole files.
    """

    def __init__(self, left_out: Path | None = None, digests: FileDigests | None = None) -> None:
        self._left_out = left_out
        self._digests = digests or FileDigests()

    def begin(self, model_args: Mapping[str, Any]) -> None:
        """Start to hash the files of local models beside what else is done; `identities` waits for them. What is wrong
        with them is told there.
        """
        subfolder = str(model_args.get("subfolder") or "")
        files: list[Path] = []
        for name in _MODELS:
            value = model_args.get(name)
            if isinstance(value, (str, Path)) and str(value):
                below = subfolder if name in ("pretrained", "tokenizer") else ""
                files += self._local_files(Path(value, below).expanduser())
        self._digests.begin(dict.fromkeys(files))

    def _local_files(self, folder: Path) -> list[Path]:
        try:
            if not folder.is_dir():
                return [folder] if folder.is_file() else []
            files = dict(self._files(folder, own_code=False))
            return [*files.values(), *(path for name, path in _named_by_indexes(files, folder) if name not in files)]
        except (OSError, ValueError):  # too long, or with a zero byte: no path
            return []

    @property
    def busy(self) -> bool:
        """Whether a file is still being hashed since `begin`."""
        return self._digests.busy

    def changed(self) -> list[Path]:
        """The files that are not what they were when `begin` noted them."""
        return self._digests.changed()

    def identities(self, model_args: Mapping[str, Any]) -> dict[str, str]:
        """The identity of everything that lm-eval's arguments of a model name, by argument.

        Raises UserError where a file cannot be read, or a hub name is not to be had.
        """
        revision, subfolder = str(model_args.get("revision") or "main"), str(model_args.get("subfolder") or "")
        own_code, gguf = bool(model_args.get("trust_remote_code")), str(model_args.get("gguf_file") or "")
        found: dict[str, str] = {}
        for name, value in model_args.items():
            if name in _MODELS and value:
                # Adapters, deltas and configs are looked for in the folder itself.
                below = subfolder if name in ("pretrained", "tokenizer") else ""
                files = (*_HUB_FILES.get(name, ("config.json",)), *filter(None, (gguf,)))
                found[name] = self.identity(str(value), revision, below, files=files, own_code=own_code)
            elif name == "gguf_file" and value:
                found |= self._gguf(str(value), str(model_args.get("pretrained")), subfolder)
            elif isinstance(value, str) and name not in _PLACES_TO_WRITE:
                found |= self._other(name, value)
        return found

    def identity(
        self,
        pretrained: str,
        revision: str = "main",
        subfolder: str = "",
        *,
        files: Sequence[str] = ("config.json",),
        own_code: bool = False,
    ) -> str:
        """The identity of one model: for a folder (or file) the SHA-256 of its contents, for a hub name the commit.

        files: by which a hub repository is found, the first that is there. own_code: whether code that comes with the
        model may run.
        """
        folder = Path(pretrained, subfolder).expanduser()
        if folder.is_dir():
            return "sha256:" + self._folder(Path(pretrained).expanduser(), subfolder, own_code=own_code)
        if folder.is_file():
            return "sha256:" + self._digest(folder)
        prefix = f"{subfolder}/" if subfolder else ""
        return f"{pretrained}@{hub_commit(pretrained, revision, [prefix + name for name in files])}"

    def _folder(self, top: Path, subfolder: str, *, own_code: bool) -> str:
        folder = top / subfolder
        files = dict(self._files(folder, own_code=own_code))
        files |= {name: path for name, path in _named_by_indexes(files, folder) if name not in files}
        if subfolder and own_code:
            # Code is looked for above the subfolder too.
            files |= {f"../{name}": path for name, path in self._files(top, own_code=True)}
        names = sorted(files, key=lambda name: Path(name).parts)
        with ThreadPoolExecutor(THREADS) as pool:
            lines = [
                f"{name} {digest}\n"
                for name, digest in zip(names, pool.map(self._digest, (files[name] for name in names)), strict=True)
            ]
        if own_code:
            lines += [f"code {self._code(name)}\n" for name in _code_elsewhere(files)]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def _files(self, folder: Path, *, own_code: bool) -> Iterator[tuple[str, Path]]:
        """The files that a loader may open, by their name below the folder."""
        seen = {os.path.realpath(folder)}
        for place, folders, names in os.walk(folder, followlinks=True):
            below = Path(place).relative_to(folder)
            folders[:] = sorted(
                name
                for name in folders
                if self._goes_into(Path(place, name), own_code=own_code or below / name in map(Path, _READ_SUBFOLDERS))
                and (real := os.path.realpath(Path(place, name))) not in seen
                and not seen.add(real)  # type: ignore[func-returns-value]  # a link must not lead round in a circle
            )
            for name in names:
                path = Path(place, name)
                if path.suffix.lower() not in _UNREAD_SUFFIXES and not _UNREAD_NAMES.fullmatch(name) and path.is_file():
                    yield (below / name).as_posix(), path

    def _goes_into(self, folder: Path, *, own_code: bool) -> bool:
        if not own_code or _UNREAD_FOLDERS.fullmatch(folder.name):
            return False
        return self._left_out is None or folder.resolve() != self._left_out.resolve()

    def _code(self, name: str) -> str:
        """Where code comes from another folder: all code there; from the hub: the commit, as far as it can be had."""
        folder = Path(name).expanduser()
        if folder.is_dir():
            code = {below: path for below, path in self._files(folder, own_code=True) if path.suffix == ".py"}
            lines = [f"{below} {self._digest(code[below])}\n" for below in sorted(code)]
            return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        try:
            return f"{name}@{hub_commit(name, 'main', ['config.json'])}"
        except UserError:
            # The code may lie in the cache of another library; without it the loader says so.
            return name

    def _gguf(self, name: str, pretrained: str, subfolder: str) -> dict[str, str]:
        """transformers takes a path first, then a file of the model."""
        for path in (Path(name), Path(pretrained, subfolder, name).expanduser()):
            if path.is_file():
                return {"gguf_file": "sha256:" + self._digest(path)}
        return {}

    def _other(self, name: str, value: str) -> dict[str, str]:
        path = Path(value).expanduser()
        try:
            is_file, is_folder = path.is_file(), path.is_dir() and len(path.parts) > 1
        except (OSError, ValueError):  # too long, or with a zero byte: no path
            return {}
        if is_folder:
            return {name: self.identity(value, own_code=True)}
        return {name: "sha256:" + self._digest(path)} if is_file else {}

    def _digest(self, path: Path) -> str:
        return self._digests.digest(path)


def identity(pretrained: str, revision: str = "main", subfolder: str = "") -> str:
    """What tells two models apart; see `ModelReader.identity`."""
    return ModelReader().identity(pretrained, revision, subfolder)


def _named_by_indexes(files: Mapping[str, Path], folder: Path) -> Iterator[tuple[str, Path]]:
    """What the indexes of a folder name, wherever it lies."""
    for name, path in files.items():
        if ".index." in name and "/" not in name:
            weights = _plain(path).get("weight_map")
            for shard in {str(shard) for shard in weights.values()} if isinstance(weights, dict) else ():
                yield os.path.normpath(shard), folder / shard


def _code_elsewhere(files: Mapping[str, Path]) -> list[str]:
    """The folders or hub names that `auto_map` takes code from: what is before `--` in its values."""
    found: set[str] = set()
    for name, path in files.items():
        if name.endswith("config.json") and "/" not in name:
            mapped = _plain(path).get("auto_map")
            values: Iterable[Any] = mapped.values() if isinstance(mapped, dict) else ()
            for value in values:
                parts = value if isinstance(value, list) else [value]
                found |= {part.partition("--")[0] for part in parts if isinstance(part, str) and "--" in part}
    return sorted(found)


def _plain(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
