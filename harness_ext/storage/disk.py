"""What a disk that takes no more, or cannot be read, makes the libraries raise: OSError, and what others make of it."""

from __future__ import annotations

import errno
import re

_OF_THE_DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ENXIO, errno.ENODEV, errno.ESTALE}
)
_SYSTEMS_WORDS = re.compile(r"(?:.*I/O error: )?(.*?) \(os error \d+\)", re.DOTALL)
# torch's own writer of files names no reason.
_TORCH_WRITER = "PytorchStreamWriter failed writing"


def disk_trouble(error: BaseException) -> str | None:
    """Why writing or reading a file failed, in the system's words; None where that is not what `error` is about.

    The writer of safetensors raises an error of its own, with the system's words in its message.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if (said := _SYSTEMS_WORDS.match(text)) is not None:
        return said[1]
    return "the file cannot be written" if _TORCH_WRITER in text else None


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error says that a disk is full, over its quota, read-only, gone or broken: never a fault of a program,
    so that it may reach a user as a sentence wherever it is raised.
    """
    if isinstance(error, OSError):
        return error.errno in _OF_THE_DISK
    return disk_trouble(error) is not None
