"""Driving the pages: by Streamlit's own test driver, and in a real Chromium."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leaderboard.app.serve import DATABASE_VARIABLE, MAIN

TIMEOUT = 60
FLAGS = ["--no-sandbox", "--disable-background-networking", "--headless"]
KINDS = ("title", "header", "subheader", "markdown", "text", "code", "caption", "warning", "error", "info")


def page_database(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the pages look for; the server's memory of earlier tests is cleared."""
    from leaderboard.app import data

    root.mkdir(parents=True, exist_ok=True)
    path = root / "leaderboard.duckdb"
    monkeypatch.setenv(DATABASE_VARIABLE, str(path))
    monkeypatch.setattr(data, "_TIMEOUT_S", 0.2)
    data.forget()
    return path


def page(name: str = "board", **parameters: str) -> Any:
    """One view of a page. The page's script is run by itself: the driver does not navigate."""
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_file(str(MAIN), default_timeout=TIMEOUT)
    for key, value in parameters.items():
        app.query_params[key] = value
    if name != "models":
        app.switch_page(f"views/{name}.py")
    app.run()
    assert not app.exception, app.exception
    return app


def results(**parameters: str) -> Any:
    """The board's tab with a row a run and task."""
    return page("board", view="All results", **parameters)


def texts(app: Any, *kinds: str) -> str:
    """Everything that is written on the page outside tables, or what is of these kinds."""
    return "\n".join(str(element.value) for kind in kinds or KINDS for element in getattr(app, kind))


def html_of(app: Any) -> str:
    """All HTML that the page itself writes (`st.html`), without the places where a name may break."""
    return "\n".join(element.proto.body for element in app.get("html")).replace("<wbr>", "")


def words_of(app: Any) -> str:
    """The text of that HTML, without tags."""
    text = re.sub(r"<style>.*?</style>", "", html_of(app), flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", text).split()))


@contextmanager
def serving(database: Path | str, start_s: float = 30.0) -> Iterator[str]:
    """The address of a running server, which must answer so soon, and end when asked to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-m", "leaderboard", "--database", str(database), "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, server, start_s)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=20)


def wait_for(url: str, server: subprocess.Popen[bytes], start_s: float = 30.0) -> None:
    """Until the server answers."""
    for _ in range(round(start_s * 10)):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


@contextmanager
def chromium_page(height: int = 900) -> Iterator[Any]:
    """A browser page; the test is skipped where Chromium or Playwright is absent (`CHROMIUM` names another
    executable).
    """
    playwright = pytest.importorskip("playwright.sync_api")
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser.new_page(viewport={"width": 1280, "height": height})
        browser.close()


def watched(page: Any) -> tuple[list[str], list[str]]:
    """Requests that leave this machine, and dialogs: there must be none of either."""
    outside: list[str] = []
    dialogs: list[str] = []
    page.on(
        "request",
        lambda request: (
            outside.append(request.url) if "127.0.0.1" not in request.url and request.url.startswith("http") else None
        ),
    )
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    return outside, dialogs


def downloaded(page: Any, kind: str, place: int = 0, wait_ms: int = 60_000) -> Any:
    """The download behind a button of a `Share` popover, of which `place` counts those of the page from 0."""
    button = page.get_by_test_id("stPopover").filter(has_text="Share").nth(place).locator("button").first
    button.wait_for(timeout=wait_ms)
    page.wait_for_timeout(1500)  # a first view is drawn again once its URL is written
    button.evaluate("found => found.click()")  # not by place: tables above it still grow
    wanted = page.get_by_test_id("stPopoverBody").get_by_role("button", name=kind, exact=True)
    wanted.wait_for(timeout=wait_ms)
    with page.expect_download(timeout=wait_ms) as waiting:
        wanted.evaluate("found => found.click()")
    return waiting.value
