"""The server of the page: a user's Streamlit configuration cannot open it, and it asks nothing of the world."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from leaderboard.app.serve import _nothing_of_the_user
from leaderboard.ingest import ingest

OPEN = """
[server]
address = "0.0.0.0"
enableCORS = false
enableXsrfProtection = false
corsAllowedOrigins = ["http://evil.example"]
allowedHosts = ["*"]
baseUrlPath = "elsewhere"
enableStaticServing = true
enableAgentApi = true
[browser]
gatherUsageStats = true
serverAddress = "evil.example"
[client]
allowedOrigins = ["https://evil.example"]
showErrorDetails = "full"
[theme]
font = "Evil:https://evil.example/font.css"
"""
VARIABLES = {
    "STREAMLIT_SERVER_ADDRESS": "0.0.0.0",
    "STREAMLIT_SERVER_ENABLE_CORS": "false",
    "STREAMLIT_SERVER_ENABLE_XSRF_PROTECTION": "false",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "true",
    "STREAMLIT_SERVER_COOKIE_SECRET": "known",
}
# Python runs this as it starts: whatever the server asks of the world is written down and refused.
AUDIT = """
import os, sys
LOCAL = ("127.", "::1", "localhost")
def hook(event, arguments):
    if event == "socket.connect" or event == "socket.sendto":
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = arguments[:1]
    else:
        return
    if isinstance(address, tuple) and address and not str(address[0] or "localhost").startswith(LOCAL):
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{event} {address}\\n")
        raise OSError("forbidden")
sys.addaudithook(hook)
"""


class Server(NamedTuple):
    """A running server: its port, and the file that says what it asked of the world."""

    port: int
    asked: Path

    def get(self, path: str, **headers: str) -> Any:
        """The answer to a request, whatever its status."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=10)
        except urllib.error.HTTPError as error:
            return error


@contextmanager
def hostile_server(folder: Path, database: Path) -> Iterator[Server]:
    """A server whose user has a configuration, at home and here, and variables that would open it."""
    for place in (folder / "home", folder / "here"):
        (place / ".streamlit").mkdir(parents=True)
        (place / ".streamlit" / "config.toml").write_text(OPEN)
    (folder / "audit").mkdir()
    (folder / "audit" / "sitecustomize.py").write_text(AUDIT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(probe.getsockname()[1], folder / "asked")
    path = f"{folder / 'audit'}:{Path(__file__).resolve().parents[3]}"
    environment = os.environ | VARIABLES | {"PYTHONPATH": path, "HOME": str(folder / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "leaderboard", "--database", str(database), "--port", str(server.port)],
        env=environment | {"ASKED": str(server.asked)},
        cwd=folder / "here",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                server.get("/_stcore/health").close()
                break
            except OSError:
                time.sleep(0.1)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def listening(port: int) -> set[str]:
    """The addresses, as Linux writes them, on which somebody listens at a port."""
    return {
        parts[1].partition(":")[0]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if (parts := line.split())[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port
    }


def views(server: Server, origin: str, pages: tuple[str, ...] = ("",), host: str = "127.0.0.1") -> str:
    """What the server sends for some pages over its socket, as text; raises where it refuses the origin."""
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from websockets.sync.client import connect
    from websockets.typing import Origin, Subprotocol

    answer = ""
    with (
        socket.create_connection(("127.0.0.1", server.port)) as reached,
        connect(
            f"ws://{host}:{server.port}/_stcore/stream",
            sock=reached,
            origin=Origin(origin),
            subprotocols=[Subprotocol("streamlit")],
            max_size=None,
        ) as stream,
    ):
        for page in pages:
            message = BackMsg()
            message.rerun_script.query_string = ""
            message.rerun_script.page_name = page
            stream.send(message.SerializeToString())
            while True:
                received = stream.recv(timeout=60)
                assert isinstance(received, bytes)
                answer += received.decode("utf-8", "replace")
                if finished(received):
                    break
    return answer


def finished(received: bytes) -> bool:
    """Whether a message says that the script has run."""
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    message = ForwardMsg()
    message.ParseFromString(received)
    return message.WhichOneof("type") == "script_finished"


@pytest.fixture
def database(made: Any, kit: Any) -> Path:
    """A store of a baseline and a recipe."""
    before, after = kit.pair(40, 20, lost=2, gained=5)
    made.run("baseline", {"sums": before})
    made.run("laser", {"sums": after})
    path: Path = made.root / "leaderboard.duckdb"
    assert not ingest([made.root], path).rejected
    return path


@pytest.mark.slow
def test_the_users_configuration_cannot_open_the_server(database: Path, tmp_path: Path) -> None:
    from websockets.exceptions import InvalidStatus

    with hostile_server(tmp_path / "user", database) as server:
        if Path("/proc/net/tcp").exists():
            assert listening(server.port) == {"0100007F"}
        for origin in ("http://evil.example", "https://evil.example:8501", "null", "http://127.0.0.1.evil.example"):
            with pytest.raises(InvalidStatus):
                views(server, origin)
            with server.get("/_stcore/health", Origin=origin) as health:
                assert health.headers.get("Access-Control-Allow-Origin") in (None, "http://localhost")
        # A name of a page elsewhere that was made to lead here.
        with pytest.raises(InvalidStatus):
            views(server, f"http://evil.example:{server.port}", host="evil.example")
        with server.get("/_stcore/host-config") as answer:
            host = answer.read().decode()
        assert "evil.example" not in host
        shown = views(server, f"http://127.0.0.1:{server.port}", ("", "compare", "history", "layers", "size"))
        assert "All numbers and notes" in shown and "Newest runs" in shown and "evil.example" not in shown
        assert not server.asked.exists(), server.asked.read_text()


def test_nothing_of_the_user_reaches_streamlit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit import config, net_util

    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "config.toml").write_text(OPEN)
    monkeypatch.chdir(tmp_path)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    before = config.get_config_files, net_util.get_internal_ip, net_util.get_external_ip
    assert config.get_config_files("config.toml")
    with _nothing_of_the_user():
        assert config.get_config_files("config.toml") == []
        assert net_util.get_external_ip() is None and net_util.get_internal_ip() is None
        assert not [name for name in os.environ if name.startswith("STREAMLIT_")]
    assert before == (config.get_config_files, net_util.get_internal_ip, net_util.get_external_ip)
