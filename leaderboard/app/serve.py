"""Start the page: a local Streamlit server for one database.

It listens on this machine only, sends no telemetry, and accepts only the host names it was started for (a web page
elsewhere cannot reach it by tricks with names). Another address has to be asked for, and is warned about: the page has
no login. Nothing else opens it: Streamlit's own configuration files and variables of the user are not read, since they
are about other pages. Nor does the server look up anything outside, as Streamlit does for its own address where a page
of another origin asks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leaderboard.commands import is_default
from leaderboard.errors import Busy, LeaderboardError, MissingDatabase

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
DATABASE_VARIABLE = "LEADERBOARD_DATABASE"
PUBLISHED_VARIABLE = "LEADERBOARD_PUBLISHED"
"""Where the board was published, without password; for a database that is a copy of it."""
MAIN = Path(__file__).parent / "main.py"


def serve_place(
    place: Path | str,
    *,
    schema: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8501,
    open_browser: bool = False,
) -> None:
    """`serve` a database file, or a copy of the board that was published at postgres://... (in `schema`, if that is not
    ours), which is kept fresh. Raises what `serve` raises, what `open_store` raises but for `Busy`, and PostgresError;
    `MissingDatabase` not for the default path, since the page then says how to fill it.
    """
    from leaderboard.postgres.address import DEFAULT_SCHEMA, PostgresAddress
    from leaderboard.postgres.local_copy import local_copy
    from leaderboard.readers.addresses import is_postgres, local_database

    if not is_postgres(str(place)):
        _check_readable(local_database(place))
        serve(local_database(place), host=host, port=port, open_browser=open_browser)
        return
    address = PostgresAddress(str(place), schema or DEFAULT_SCHEMA)
    with local_copy(address) as copy:
        serve(copy, host=host, port=port, open_browser=open_browser, published=str(address))


def _check_readable(database: Path) -> None:
    from leaderboard.store.database import open_store

    try:
        with open_store(database, read_only=True, timeout_s=0):
            pass
    except MissingDatabase:
        if not is_default(database):
            raise
    except Busy:
        pass  # the page tries again


def serve(
    database: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    open_browser: bool = False,
    published: str | None = None,
) -> None:
    """Serve the page until interrupted. The database may be missing or empty: the page then says what to run.
    published: where the board was published, for a database that is a copy of it.

    Raises `LeaderboardError` for a port that is taken.
    """
    _check_port(host, port)
    if host not in LOCAL_HOSTS:
        print(
            f"warning: listening on {host}: everybody who can reach this machine can read the leaderboard",
            file=sys.stderr,
        )
    os.environ[DATABASE_VARIABLE] = str(Path(database).resolve())
    os.environ[PUBLISHED_VARIABLE] = published or ""
    print(
        f"leaderboard of {published or database} at http://{_url_host(host)}:{port} (Ctrl-C ends it)",
        file=sys.stderr,
        flush=True,
    )
    with _nothing_of_the_user(), _judging_beside(Path(database).resolve()):
        import streamlit

        known = streamlit.config.get_config_options()  # an older Streamlit lacks some settings of the look
        look = {name: value for name, value in _theme().items() if name in known}
        streamlit.App(MAIN).run(config=_config(host, port, open_browser) | look)


@contextmanager
def _judging_beside(database: Path) -> Iterator[None]:
    """Inside the block another process judges what is not judged yet, and stores it: pages only read. It gives way to
    whatever else the machine does, and ends with this one.
    """
    code = "import sys; from leaderboard.app.serve import judge_for; judge_for(sys.argv[1], int(sys.argv[2]))"
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(database), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        worker.terminate()
        worker.wait()


def judge_for(database: str, server: int) -> None:
    """What the process beside the server with this process id does."""
    from leaderboard.judging import keep_judged

    if hasattr(os, "nice"):
        os.nice(10)
    keep_judged(Path(database), lambda: os.getppid() == server)


@contextmanager
def _nothing_of_the_user() -> Iterator[None]:
    """Inside the block Streamlit reads no configuration file and no variable of its own, and looks up no address."""
    for name in [name for name in os.environ if name.startswith("STREAMLIT_")]:
        del os.environ[name]
    from streamlit import config, net_util

    kept = config.get_config_files, net_util.get_internal_ip, net_util.get_external_ip
    config.get_config_files = lambda file_name: []
    net_util.get_internal_ip = net_util.get_external_ip = lambda: None
    try:
        yield
    finally:
        config.get_config_files, net_util.get_internal_ip, net_util.get_external_ip = kept


def _config(host: str, port: int, open_browser: bool) -> dict[str, object]:
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": not open_browser,
        "server.allowedHosts": list(LOCAL_HOSTS) if host in LOCAL_HOSTS else ["*"],
        "server.enableCORS": True,
        "server.corsAllowedOrigins": [],
        "server.enableXsrfProtection": True,
        "server.trustedUserHeaders": {},
        "server.enableAgentApi": False,
        "server.baseUrlPath": "",
        "server.customComponentBaseUrlPath": "",
        "server.fileWatcherType": "none",
        "server.enableStaticServing": False,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": "localhost" if host in LOCAL_HOSTS else host,
        "client.allowedOrigins": [],
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
    }


def _theme() -> dict[str, object]:
    """The look of the pages, light or dark as the reader's system is."""
    light = {
        "primaryColor": "#0b5cad",
        "backgroundColor": "#ffffff",
        "secondaryBackgroundColor": "#f3f5f8",
        "textColor": "#0b111a",
        "linkColor": "#0b5cad",
        "borderColor": "#d9dee5",
        "grayTextColor": "#5b6472",
    }
    dark = {
        "primaryColor": "#4c9be8",
        "backgroundColor": "#12151b",
        "secondaryBackgroundColor": "#1c2028",
        "textColor": "#e6e9ee",
        "linkColor": "#7fbcf5",
        "borderColor": "#333945",
        "grayTextColor": "#a6afbc",
    }
    common = {
        "paddingTop": "1rem",
        "paddingBottom": "3rem",
        "baseRadius": "6px",
        "headingFontSizes": ["1.6rem", "1.3rem", "1.1rem", "1rem", "0.95rem", "0.9rem"],
        "baseFontSize": 15,
    }
    return {
        **{f"theme.{name}": value for name, value in common.items()},
        **{f"theme.light.{name}": value for name, value in light.items()},
        **{f"theme.dark.{name}": value for name, value in dark.items()},
    }


def _check_port(host: str, port: int) -> None:
    """Say that a port is taken before a server starts and says it in its own way."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise LeaderboardError(f"cannot listen on {host}:{port} ({error}): choose another with --port") from error


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
