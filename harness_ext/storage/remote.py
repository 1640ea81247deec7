"""Results in a place with a scheme (`s3://bucket/results`, `gs://...`, whatever fsspec knows), for machines that share
no disk.

Notable choices:
- A run is written to a local mirror first and uploaded when it is whole. Object stores rename nothing, so that the
  receipt, which lists all other files with sizes and digests, goes last: a folder without one is no run, and one whose
  files are not those of its receipt is not taken.
- What lies there is untrusted: names are checked, sizes are held against the receipt before anything is fetched, and a
  run gets its place only when its digests are right.
- Credentials are the business of fsspec's backends (environment, profile, role of the machine). A URL that holds one is
  refused, since it would stand in receipts.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError, closest
from harness_ext.storage.disk import disk_trouble, is_of_the_disk
from harness_ext.storage.integrity import RECEIPT, damage
from harness_ext.storage.paths import cache_folder
from harness_ext.storage.rundir import FinishedRun, finished_runs, safe_name, writing
from leaderboard.readers.addresses import is_postgres
from leaderboard.readers.secrets import redacted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"[^:@]*(?::\d*)?")  # with a port; anything else after a colon may be a password
_SAFE = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*")
_LARGEST_RECEIPT = 64 << 20
_MOST_FILES = 10_000
_WITH_FOLDERS = frozenset({"file", "local", "memory", "sftp", "ssh", "smb", "ftp", "hdfs", "webhdfs"})
_PACKAGES = {"s3": "lm-eval-recipes[s3]", "s3a": "lm-eval-recipes[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}


def is_remote(output_path: object) -> bool:
    """Whether a place is one with a scheme rather than a path."""
    return isinstance(output_path, str) and _URL.match(output_path) is not None


@dataclass(frozen=True)
class Pulled:
    """What a pull brought: run folders that are new here, what was left where it is, with the reason, and all of the
    place's runs that are here now.
    """

    new: tuple[Path, ...]
    left_out: Mapping[str, str]
    here: tuple[Path, ...] = field(default=(), compare=False)


class RemoteResults:
    """The runs in a remote place, `<url>/<model>/<run>/`. url: as given to `--output_path`.

    Raises UserError for a URL that cannot be used, and where a backend or credentials are missing.
    """

    def __init__(self, url: str) -> None:
        self.url = check_url(url)
        check_backend(self.url)
        with _told(self.url):
            from fsspec.core import url_to_fs

            filesystem, root = url_to_fs(self.url)
        self._filesystem: AbstractFileSystem = filesystem
        self._root = root.rstrip("/")

    @property
    def mirror(self) -> Path:
        """The local folder of this place's runs, of this machine alone: it may be removed at any time."""
        folder = (cache_folder() or Path(tempfile.gettempdir()) / "lm-eval-recipes") / "remote"
        told = sha256(f"{platform.node()}\n{self.url}".encode()).hexdigest()[:10]
        return folder / f"{safe_name(self.url.partition('://')[2])}-{told}"

    def check_writable(self) -> None:
        """Find out before anything is computed that nothing can be uploaded. Raises UserError."""
        probe = f"{self._root}/.probe-{safe_name(platform.node())}"
        with _told(self.url):
            self._make_folder(self._root)
            self._filesystem.pipe_file(probe, b"")
            with suppress(Exception):  # who may write may not be one who may remove
                self._filesystem.rm_file(probe)

    def names(self, model: str) -> list[str]:
        """The names of the whole runs in a model's folder. model: the folder's name."""
        return [name for folder, name in self._receipts(f"{self._root}/{model}") if folder == model]

    def send(self, model: str, run: Path) -> bool:
        """Upload a run folder into a model's folder; False where it is there already. Raises UserError."""
        place = f"{self._root}/{model}/{run.name}"
        with _told(self.url):
            if self._size(f"{place}/{RECEIPT}") == (run / RECEIPT).stat().st_size:
                return False
            with suppress(FileNotFoundError):
                self._filesystem.rm_file(f"{place}/{RECEIPT}")
            self._make_folder(place)
            names = sorted(path.name for path in run.iterdir() if path.is_file() and path.name != RECEIPT)
            for name in (*names, RECEIPT):
                self._filesystem.put_file(str(run / name), f"{place}/{name}")
        return True

    def bring(self, model: str, name: str, root: Path) -> Path | None:
        """Fetch one run into its place below a local results folder; None where the place has it already.

        Raises UserError where it cannot be fetched, and Untaken where it is not to be had whole.
        """
        place = root / model / name
        remote = f"{self._root}/{model}/{name}"
        with _told(self.url):
            size = self._size(f"{remote}/{RECEIPT}")
            if size is None or size > _LARGEST_RECEIPT:
                raise Untaken("its receipt is gone" if size is None else "its receipt is too large")
            if _is_here(place, size):
                return None
            text = self._filesystem.cat_file(f"{remote}/{RECEIPT}")
            receipt = _receipt(text)
            files = _listed(receipt)
            self._check_sizes(remote, files)
            place.parent.mkdir(parents=True, exist_ok=True)
            _check_room(root, sum(files.values()))
            with writing(place) as folder:
                for listed in files:
                    self._filesystem.get_file(f"{remote}/{listed}", str(folder / listed))
                (folder / RECEIPT).write_bytes(text)
                if not FinishedRun(folder, receipt).failed and (wrong := damage(folder, receipt)) is not None:
                    raise Untaken(wrong)
        return place

    def pull(self, root: Path) -> Pulled:
        """Fetch all whole runs that a local results folder lacks; it is made where there is none. Raises UserError."""
        with _told(self.url):
            root.mkdir(parents=True, exist_ok=True)
        new: list[Path] = []
        here: list[Path] = []
        left_out: dict[str, str] = {}
        for model, name in self._receipts(self._root):
            if not (_SAFE.fullmatch(model) and _SAFE.fullmatch(name)):
                left_out[f"{model}/{name}"] = "its name is none that a run gets"
                continue
            try:
                if (place := self.bring(model, name, root)) is not None:
                    new.append(place)
                here.append(root / model / name)
            except Untaken as reason:
                left_out[f"{model}/{name}"] = str(reason)
        return Pulled(tuple(new), left_out, tuple(here))

    def _receipts(self, below: str) -> list[tuple[str, str]]:
        """(model, run) of each receipt below a place, in order."""
        with _told(self.url):
            self._filesystem.invalidate_cache()
            try:
                paths = self._filesystem.find(below)
            except FileNotFoundError:
                return []
        inside = (path.removeprefix(self._root).strip("/").split("/") for path in paths)
        return sorted((parts[0], parts[1]) for parts in inside if len(parts) == 3 and parts[2] == RECEIPT)

    def _make_folder(self, path: str) -> None:
        """Only where folders are things of their own: elsewhere a mistyped bucket would be created."""
        if self.url.partition("://")[0].lower() in _WITH_FOLDERS:
            self._filesystem.makedirs(path, exist_ok=True)

    def _size(self, path: str) -> int | None:
        """The bytes of a file; None where there is none."""
        self._filesystem.invalidate_cache()
        try:
            size = self._filesystem.info(path).get("size")
        except FileNotFoundError:
            return None
        return int(size) if size is not None else None

    def _check_sizes(self, remote: str, files: Mapping[str, int]) -> None:
        there = {
            entry["name"].rpartition("/")[2]: entry.get("size") for entry in self._filesystem.ls(remote, detail=True)
        }
        for name, size in files.items():
            if there.get(name) != size:
                raise Untaken(f"{name} is missing" if name not in there else f"{name} has not the size of its receipt")


class Untaken(Exception):
    """A remote folder that is not taken for a run; the message is a clause that says why."""


def check_url(url: str) -> str:
    """The URL of a folder, as it is kept. Raises UserError for one that cannot be used, whatever lies there; the
    message holds nothing that may be a secret.
    """
    scheme, _, rest = url.partition("://")
    if is_postgres(f"{scheme.lower()}://"):
        raise UserError(
            f"{scheme}://*** is a PostgreSQL, which keeps no run folders: give a folder or a bucket, and"
            " `lm_eval publish --to` writes the board to the PostgreSQL"
        )
    if not _HOST.fullmatch(rest.partition("/")[0]):
        after = f"@{rest.rpartition('@')[2]}" if "@" in rest else ""
        raise UserError(
            f"{scheme}://***{after} holds credentials, which would stand in receipts: leave them out"
            " and give them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE,"
            " GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if "::" in url or "?" in url or "#" in url:
        plain = redacted(re.split("[?#]", url)[0])
        raise UserError(f"{plain}: give a plain URL of a folder, without `::`, `?` and `#`")
    if not rest.strip("/"):
        raise UserError(f"{url} names no place: give a bucket and a folder, {scheme}://BUCKET/results")
    # lm-eval takes a folder or a .json file, beside which the others lie.
    return (url.rpartition("/")[0] if url.endswith(".json") else url).rstrip("/")


def check_backend(url: str) -> None:
    """Raises UserError where nothing here can reach places of the URL's scheme: nothing is asked of the network."""
    from fsspec.registry import available_protocols, get_filesystem_class

    scheme = url.partition("://")[0]
    if scheme not in available_protocols():
        near = closest(scheme, _PACKAGES.keys() | _WITH_FOLDERS)
        meant = f"; did you mean {near}?" if near else ""
        raise UserError(
            f"{url} cannot be used (no storage is known by the name {scheme}{meant}):"
            " give a folder of this machine, s3://BUCKET/results, gs://BUCKET/results, or another scheme that fsspec"
            " knows"
        )
    with _told(url):
        get_filesystem_class(scheme)


def _is_here(place: Path, receipt_size: int) -> bool:
    """Whether a local place has the run: a whole one of its own, or what was fetched from the very same receipt."""
    here = next((run for run in finished_runs(place.parent) if run.path == place), None)
    if here is None:
        return False
    return (place / RECEIPT).stat().st_size == receipt_size if here.failed else here.damage is None


def _receipt(text: bytes) -> dict[str, Any]:
    try:
        receipt = json.loads(text)
    except (ValueError, RecursionError):
        receipt = None
    if not isinstance(receipt, dict):
        raise Untaken("its receipt cannot be read")
    return receipt


def _listed(receipt: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of each file that a receipt lists."""
    files = receipt.get("files")
    if not isinstance(files, list) or len(files) > _MOST_FILES:
        raise Untaken("its receipt lists no files")
    listed: dict[str, int] = {}
    for file in files:
        name, size = (file.get("name"), file.get("bytes")) if isinstance(file, dict) else (None, None)
        if not isinstance(name, str) or type(size) is not int or "/" in name or "\\" in name or name.startswith("."):
            raise Untaken("its receipt lists a file that no run has")
        listed[name] = size
    return listed


def _check_room(root: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(root).free):
        raise UserError(
            f"{root} has {free:,} bytes free, and a run to be fetched has {needed:,}: make room and try again"
        )


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What goes wrong with a remote place as a sentence: each backend has errors of its own, so any is taken."""
    try:
        yield
    except (UserError, Untaken):
        raise
    except ImportError as error:
        package = _PACKAGES.get(url.partition("://")[0].lower())
        how = f"pip install '{package}'" if package else str(error)
        raise UserError(f"{url} needs a package that is not installed: {how}") from None
    except Exception as error:
        if is_of_the_disk(error):
            raise UserError(f"a run of {url} cannot be written here: {disk_trouble(error)}; make room") from error
        reason = redacted(str(error)).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{url} cannot be used ({reason}): check the name, the network, and the credentials in the environment"
        ) from error
