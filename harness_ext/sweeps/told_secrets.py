"""Secrets that a sweep file holds: each would stand in the files of the sweep, in lists of processes and in receipts.

A cell inherits the environment of `lm_eval sweep`, where all of them belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness_ext.errors import UserError
from harness_ext.storage.remote import check_backend, check_url, is_remote
from leaderboard.readers.plain_yaml import shown
from leaderboard.readers.secrets import secret_places

_VARIABLES = {"wandb_args": "WANDB_API_KEY", "wandb_config_args": "WANDB_API_KEY"}
"""By the flag that the secret stands in; elsewhere it is mostly the hub's."""
_OF_THE_HUB = "HF_TOKEN, for one"
_PLACE = "output_path"


def secret_mistakes(data: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each secret of the plain data, with its key and without its value."""
    remote = is_remote(data.get(_PLACE))
    if remote:
        yield from _told(check_url, str(data[_PLACE]))
    for place in secret_places({key: value for key, value in data.items() if not (remote and key == _PLACE)}):
        variable = next((_VARIABLES[part] for part in place if part in _VARIABLES), _OF_THE_HUB)
        yield (
            f"{shown('.'.join(place))}: holds a secret, which would stand in the files of the sweep: leave it out, and"
            f" set it in the environment of `lm_eval sweep` ({variable})"
        )


def place_mistakes_here(data: Mapping[str, Any]) -> Iterator[str]:
    """What this machine lacks to reach the place of the results."""
    place = data.get(_PLACE)
    if is_remote(place) and not list(_told(check_url, str(place))):
        yield from _told(check_backend, str(place))


def _told(check: Callable[[str], object], place: str) -> Iterator[str]:
    try:
        check(place)
    except UserError as error:
        yield f"{_PLACE}: {error}"
