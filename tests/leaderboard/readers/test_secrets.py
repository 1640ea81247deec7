"""Tokens and passwords are told from special tokens, and are kept nowhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from leaderboard.ingest import ingest
from leaderboard.readers.discovery import Candidate, find_runs
from leaderboard.readers.reader import read_runs
from leaderboard.readers.records import Run
from leaderboard.readers.secrets import is_secret, redacted, redacted_command, secret_values, without_secrets
from leaderboard.store.database import open_store

TOKEN = "hf_inventedINVENTEDinventedINVENTED00"


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hf_token",
        "HF_TOKEN",
        "use_auth_token",
        "hub_token",
        "api_key",
        "apiKey",
        "OPENAI_API_KEY",
        "x-api-key",
        "auth",
        "Authorization",
        "proxy-authorization",
        "password",
        "db_password",
        "client_secret",
        "access_token",
        "aws_secret_access_key",
        "credentials",
        "PGPASSWORD",
        "MYSQL_PWD",
        "dbPassword",
        "SSHPASS",
        "SMTP_PASS",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AccountKey",
        "sharedAccessKey",
        "GITHUB_PAT",
        "GITHUBTOKEN",
        "VENDOR_NOBODY_KNOWS_TOKEN",
        "REPLICATE_API_TOKEN",
        "storage_sas",
        "OPENAIAPIKEY",
        "clientsecret",
        "DEPLOY_TOKEN_2",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "eos_token",
        "pad_token",
        "bos_token",
        "add_bos_token",
        "max_new_tokens",
        "prefix_token_id",
        "tokenizer",
        "tokenizer_pad_token",
        "eot_token_id",
        "think_end_token",
        "image_token_id",
        "author",
        "keys",
        "tokens_per_second",
        "PATH",
        "PWD",
        "OLDPWD",
        "PGPASSFILE",
        "MONKEY",
        "KEYBOARD",
        "TOKENIZERS_PARALLELISM",
        "MAX_TOKENS",
        "EOS_TOKEN",
        "PADTOKEN",
        "max_tokens",
        "image_token",
        "think_end_token",
        "flops_per_token",
        "generate_next_token",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "SSH_AUTH_SOCK",
        "XAUTHORITY",
        "cache_key",
        "sort_keys",
        "bypass",
        "forward_pass",
        "pattern",
        "patch",
        "compat",
        "password_file",
    ],
)
def test_names_of_what_is_none(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"pretrained=a,token={TOKEN},dtype=float32", "pretrained=a,token=***,dtype=float32"),
        ('{"pretrained": "a", "api_key": "x y,z"}', '{"pretrained": "a", "api_key": "***"}'),
        ("run(model_args={'pretrained': 'a', 'token': 'zzz'}, limit=2)", None),
        ("401 for Authorization: Bearer abcdefgh", "401 for Authorization: ***"),
        ("base_url=https://me:pa:ss@host/v1,num=2", "base_url=https://***@host/v1,num=2"),
        ("https://host/v1?api_key=abc&b=2", "https://host/v1?api_key=***&b=2"),
        (f"no access with {TOKEN}.", "no access with ***."),
        ("eos_token=</s>,token=True,max_tokens=5", "eos_token=</s>,token=True,max_tokens=5"),
        ("git@github.com:a/b https://host/a@b", "git@github.com:a/b https://host/a@b"),
    ],
)
def test_texts(text: str, left: str | None) -> None:
    assert redacted(text) == (left or "run(model_args={'pretrained': 'a', 'token': '***'}, limit=2)")


def test_settings_lose_the_name_as_well() -> None:
    given = {
        "model_args": f"pretrained=a,token={TOKEN},dtype=float32",
        "nested": [{"api_key": 5, "auth": ("me", "word"), "token": True, "header": {"Authorization": "Bearer abc"}}],
        "proxies": {"https": "http://me:word@host"},
    }
    assert without_secrets(given) == {
        "model_args": "pretrained=a,dtype=float32",
        "nested": [{"token": True, "header": {}}],
        "proxies": {"https": "http://***@host"},
    }
    plain = {"pretrained": "a", "eos_token": "</s>", "list": [1, {"b": None}]}
    assert without_secrets(plain) is plain


def test_a_command_line() -> None:
    command = ["lm_eval", "run", "--hf_token", "abc", "--model_args", "token=abcdefg", "--x", "abcdefg", "--password"]
    assert redacted_command(command) == (
        ["lm_eval", "run", "--hf_token", "***", "--model_args", "token=***", "--x", "***", "--password"]
    )


@pytest.mark.parametrize("text", ["a" * 10**6, "a-" * 10**5, "token=" * 10**5, "token=([{" * 3000, "://a:" * 10**5])
def test_texts_of_anybody_take_a_moment(text: str) -> None:
    started = time.perf_counter()
    redacted(text)
    assert time.perf_counter() - started < 5


def _with_model_args(path: Path, tasks: dict[str, Any], arguments: Any) -> Path:
    """lm-eval repeats the arguments of the model in the metadata of each task."""
    data = json.loads(path.read_text())
    data["config"]["model_args"] = arguments
    if isinstance(arguments, dict):
        for task in tasks:
            data["configs"][task]["metadata"] |= arguments
    path.write_text(json.dumps(data))
    return path


def _read(path: Path) -> Run:
    (candidate,) = find_runs(path)
    assert isinstance(candidate, Candidate)
    (run,) = read_runs(candidate)
    return run


@pytest.mark.parametrize("samples", [True, False])
def test_a_result_of_plain_lm_eval_is_kept_without_its_token(made, kit, tmp_path: Path, samples: bool) -> None:
    outputs, _ = kit.pair(20, 15)
    tasks = {"sums": outputs}
    file = made.plain(tasks)
    if not samples:
        for path in file.parent.glob("samples_*"):
            path.unlink()
    runs = {}
    for name, token in (("none", {}), ("one", {"token": TOKEN}), ("other", {"token": "secret-word", "api_key": "k"})):
        runs[name] = _read(_with_model_args(file, tasks, {"pretrained": "org/model", **token}).parent)
    assert runs["one"].run_id == runs["other"].run_id
    assert runs["one"].variant == runs["other"].variant == runs["none"].variant
    assert TOKEN not in repr(runs["one"])
    # What an earlier version stored is known by the id that it had.
    assert runs["one"].former_id != runs["other"].former_id
    database = tmp_path / "stored.duckdb"
    _with_model_args(file, tasks, {"pretrained": "org/model", "token": TOKEN})
    assert len(ingest([file.parent], database).added) == 1
    assert TOKEN.encode() not in database.read_bytes()
    with open_store(database, read_only=True) as store:
        assert "org/model" in str(store.rows("SELECT settings FROM runs"))


def test_arguments_as_text(made, kit) -> None:
    outputs, _ = kit.pair(20, 15)
    file = made.plain({"sums": outputs})
    without = _read(_with_model_args(file, {}, "pretrained=org/model,dtype=float32").parent)
    given = _read(_with_model_args(file, {}, f"pretrained=org/model,token={TOKEN},dtype=float32").parent)
    assert given.run_id == without.run_id and TOKEN not in repr(given)


def test_a_password_in_a_url_is_known_from_then_on() -> None:
    held = ["postgres://team:inv%40nted9@host/board", "s3://key:sl/ashed-word@bucket/x", "http://host:8000/a@b"]
    known = secret_values(held)
    assert known == {"inv%40nted9", "inv@nted9", "sl/ashed-word"}
    assert redacted("postgres:/team:inv@nted9@host is none", known) == "postgres:/team:***@host is none"
    assert [redacted(url) for url in held] == ["postgres://***@host/board", "s3://***@bucket/x", "http://host:8000/a@b"]


def test_the_secrets_of_an_environment() -> None:
    held = ["PGPASSWORD", "MLFLOW_TRACKING_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "GITHUB_PAT"]
    plain = {
        "MONKEY": "a-monkey",
        "PWD": "/my/folder",
        "PATH": "/usr/bin",
        "EOS_TOKEN": "<|endoftext|>",
        "NO_PASS": "1",
    }
    secret = {name: f"unseen-{name.lower()}" for name in held}
    address = {"MLFLOW_TRACKING_URI": "https://team:unseen-word@host/x"}
    assert secret_values({**plain, **secret, **address}) == {*secret.values(), "unseen-word"}
