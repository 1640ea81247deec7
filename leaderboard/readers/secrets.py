"""Tokens, passwords and keys of services: taken out of whatever is kept, shared or printed.

Notable choices:
- A setting is a secret by its name (`token`, `hf_token`, `api_key`, `password`, `Authorization`, ...), at any depth,
  and goes with its name: what a run was asked does not depend on who asked. `token=True` says nothing secret and stays.
- A text holds one where it is written as a setting (`token=...`, `"api_key": "..."`), stands in a URL before the host,
  or has the form in which a known service writes its keys. There it becomes `***`.
- Special tokens of models (`eos_token`, `pad_token`, `max_new_tokens`, ...) are no secrets.
- An environment variable is one by the same words, with or without `_` before them (`PGPASSWORD`), and by any `TOKEN`
  that is none of a model's. Whatever is missing here is shown: rather a name too many than one too few.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
"""What stands in a text where a secret was."""
_SHORTEST = 6  # of values that are looked for in texts: a shorter one may be a word
_KEYS = "secret|access|private|account|subscription|encryption|signing|storage|shared|master|service|ssh"
_TOKENS = (
    "hf|hub|hugging_?face|auth|oauth|access|api|bearer|refresh|session|git|github|gitlab|wandb|trackio|mlflow|tracking"
    "|openai|anthropic|azure|aws|databricks|security|secret|sas|id|login|user|client|service|bot|personal|private"
    "|account|storage|deploy|registry|job|app|admin|vault|slack|read|write"
)
_NAMES = re.compile(
    r".*(?:password|passwd|passphrase|pwd|secret|api_?keys?)"
    r"|(?:.*_)?(?:secrets|credentials?|auth|authorization|bearer|cookie|pat|sas)"
    rf"|(?:.*_)?(?:{_KEYS})_?key(?:_?id)?|tokens?|(?:.*_)?(?:{_TOKENS})_?tokens?"
)
_VARIABLES = re.compile(r"(?=[A-Z])(?:[A-Z0-9_]*TOKEN|(?:[A-Z0-9_]*_|SSH|DB)PASS)(?:_?\d)?")
"""Names of environment variables, which are many: only there is any token a secret that is no model's special one."""
_OF_MODELS = re.compile(
    r".*(?:BOS|EOS|PAD|UNK|SEP|CLS|MASK|EOT|EOM|SOT|IMAGE|AUDIO|VIDEO|VISION|THINK|PREFIX|SUFFIX|START|END|STOP|SPECIAL"
    r"|FIRST|LAST|NEXT|NEW|MAX|MIN|PER|TOP|PROMPT|IMPLICIT)_?TOKEN(?:_?\d)?"
)
_OF_THE_SHELL = frozenset({"PWD", "OLDPWD"})
"""The folder it is in, and the one before."""
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
    r"|(?<=\bBearer )[^\s'\",}]{6,}|(?<=\bBasic )[A-Za-z0-9+/=]{8,}"
)
_IN_URL = re.compile(
    r"(?<=://)[^\s/@'\"]{0,200}:[^\s/'\"]{0,200}(?=@)|(?<=://)[^\s/@:'\"]{20,200}(?=@)"
    # a password with a slash, but no port and path
    r"|(?<=://)[^\s/@:'\"[]{0,200}:(?!\d{0,5}/)(?:[^\s'\":]|:(?!//)){0,200}(?=@)"
)
_NAME = re.compile(r"""(?<![A-Za-z0-9_])([A-Za-z][\w-]{0,60})(?:\s?=|\\?["']\s?:\s?|:\s(?=Bearer|Basic))""")
# Bounded, since a text may be anybody's: nothing here takes more than a moment.
_VALUE = re.compile(
    r"""(?P<quote>\\?"|')(?P<quoted>(?:[^"'\\]|\\[^"']){0,4000})(?P=quote)|\[[^]]{0,4000}\]|\([^)]{0,4000}\)"""
    r"""|\{[^}]{0,4000}\}|(?:Bearer |Basic )?[^\s,;&"'}\])]{1,4000}"""
)
_PLAIN_WORDS = frozenset({"true", "false", "none", "null", HIDDEN})


def is_secret(name: object) -> bool:
    """Whether a setting of this name holds a secret."""
    text = str(name)
    if text in _OF_THE_SHELL:
        return False
    if _VARIABLES.fullmatch(text) and not _OF_MODELS.fullmatch(text):
        return True
    plain = _HUMP.sub("_", text).lower().replace("-", "_").strip("_")
    return _NAMES.fullmatch(plain) is not None


def without_secrets(value: Any) -> Any:
    """A copy of nested mappings and lists without secrets; the very same object where there are none."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        kept = {key: _kept(key, item) for key, item in value.items() if not _holds_secret(key, item)}
        same = len(kept) == len(value) and all(kept[key] is item for key, item in value.items())
        return value if same else kept
    if isinstance(value, (list, tuple)):
        items = [without_secrets(item) for item in value]
        if all(new is old for new, old in zip(items, value)):
            return value
        return items if isinstance(value, list) else tuple(items)
    return value


def _kept(key: object, value: Any) -> Any:
    """A text of several settings loses those that are secrets whole, as a mapping of them does."""
    if isinstance(value, str) and str(key).endswith(("_args", "_kwargs")) and "=" in value:
        pairs = [pair for pair in value.split(",") if not ("=" in pair and _is_secret_pair(pair))]
        value = ",".join(pairs) if len(pairs) < value.count(",") + 1 else value
    return without_secrets(value)


def _is_secret_pair(pair: str) -> bool:
    name, _, value = pair.partition("=")
    return _holds_secret(name.strip(), value.strip())


def _holds_secret(name: object, value: Any) -> bool:
    if value is None or isinstance(value, bool) or (isinstance(value, str) and value.lower() in {"", *_PLAIN_WORDS}):
        return False
    return is_secret(name)


def secret_values(value: Any) -> set[str]:
    """The secrets that are given by name, or in a URL, somewhere in nested mappings and lists, as far as they are long
    enough to be told from other text.
    """
    found: set[str] = set()
    if isinstance(value, Mapping):
        for key, item in value.items():
            found |= set(_texts(item)) if _holds_secret(key, item) else secret_values(item)
    elif isinstance(value, (list, tuple)):
        found = found.union(*map(secret_values, value))
    elif isinstance(value, str):
        found = {value[start:end].removeprefix("Bearer ") for start, end in _spans(value)} | _in_urls(value)
    return {text for text in found if len(text) >= _SHORTEST}


def secret_places(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys that lead to each secret somewhere in nested mappings and lists."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if _holds_secret(key, item):
                yield (*place, str(key))
            else:
                yield from secret_places(item, (*place, str(key)))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from secret_places(item, (*place, str(number)))
    elif isinstance(value, str) and redacted(value) != value:
        yield place


def _in_urls(text: str) -> set[str]:
    """The passwords in URLs, as they are written there and as they are meant."""
    if "://" not in text:
        return set()
    found = {match[0].partition(":")[2] or match[0] for match in _IN_URL.finditer(text)}
    return found | {unquote(password) for password in found}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)


def redacted(text: str, known: Iterable[str] = ()) -> str:
    """The text with `***` in place of secrets. known: values that are secrets wherever they stand."""
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if "=" in text or ":" in text:
        for start, end in reversed(list(_spans(text))):
            text = f"{text[:start]}{HIDDEN}{text[end:]}"
        text = _IN_URL.sub(HIDDEN, text) if "://" in text else text
    return _SHAPES.sub(HIDDEN, text)


def without_known(value: Any, known: set[str]) -> Any:
    """Nested mappings and lists with `***` in place of known secrets; the very same object where none is known."""
    if not known:
        return value
    if isinstance(value, str):
        return redacted(value, known) if any(secret in value for secret in known) else value
    if isinstance(value, Mapping):
        return {key: without_known(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_known(item, known) for item in value)
    return value


def redacted_command(command: Sequence[str]) -> list[str]:
    """The words of a command line without secrets, in one word (`token=...`) or after a flag (`--token ...`)."""
    known = secret_values(list(command))
    known |= {value for flag, value in pairwise(command) if _is_flag(flag) and not value.startswith("-")}
    return [
        HIDDEN if place and _is_flag(command[place - 1]) and not word.startswith("-") else redacted(word, known)
        for place, word in enumerate(command)
    ]


def _is_flag(word: str) -> bool:
    return word.startswith("--") and "=" not in word and is_secret(word.lstrip("-"))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where secrets stand that are written as settings."""
    end = 0
    for match in _NAME.finditer(text):
        if match.start() < end or not is_secret(match[1]):
            continue
        value = _VALUE.match(text, match.end())
        if value is not None:
            group = "quoted" if value["quoted"] is not None else 0
            if _holds_secret(match[1], value[group]):
                yield value.span(group)
                end = value.end()
