"""Ray's token is private from its first byte on, and the switch to loopback is put back; without Ray being started."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from components.core.errors import ConfigError
from components.core.ray_access import loopback_only, private_token, ray_constants

SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", SWITCH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_and_only_its_user_reads_it(home: Path) -> None:
    before = os.umask(0)  # the most careless there is
    try:
        private_token()
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    made = token.read_text()
    assert (rights(token), rights(token.parent)) == (0o600, 0o700)
    assert len(bytes.fromhex(made)) == 32
    private_token()
    assert token.read_text() == made
    assert list(token.parent.iterdir()) == [token]


@pytest.mark.parametrize("given", [False, True])
def test_others_lose_their_rights_to_a_token_that_is_there(
    given: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = home / (".ray/auth_token" if not given else "elsewhere")
    token.parent.mkdir(exist_ok=True)
    token.write_text("kept")
    token.chmod(0o644)
    if given:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    private_token()
    assert rights(token) == 0o600
    assert token.read_text() == "kept"


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "mine")])
def test_no_file_where_none_is_read(name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    private_token()
    assert list(home.iterdir()) == []


def test_a_home_that_takes_no_token_is_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".ray").write_text("")
    with pytest.raises(ConfigError, match=r"^Ray's token .*auth_token cannot be read or made \(.*RAY_AUTH_TOKEN\.$"):
        private_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "none"))
    with pytest.raises(ConfigError, match=r"^Ray's token .*none cannot be read"):
        private_token()


def test_loopback_is_for_what_is_started_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_constants.ENABLE_RAY_CLUSTER  # as Ray has it on Linux
    with loopback_only():
        assert not ray_constants.ENABLE_RAY_CLUSTER
        assert os.environ[SWITCH] == "0"
    assert ray_constants.ENABLE_RAY_CLUSTER
    assert SWITCH not in os.environ
    monkeypatch.setenv(SWITCH, "1")
    with loopback_only():
        assert ray_constants.ENABLE_RAY_CLUSTER
    assert os.environ[SWITCH] == "1"


STORE = """
import sys
from torch.distributed.rendezvous import rendezvous
if sys.argv[2] == "kept":
    from components.training.rendezvous import keep_store_on_loopback
    keep_store_on_loopback()
store, rank, size = next(rendezvous(f"tcp://127.0.0.1:{sys.argv[1]}", rank=0, world_size=1))
store.set("asked", "answered")
print(store.get("asked").decode(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kept", [False, True])
def test_the_workers_store_listens_on_loopback(kept: bool) -> None:
    """PyTorch alone listens everywhere: otherwise this test could not fail."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", STORE, str(port), "kept" if kept else "open"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "answered\n"
        found = {each.laddr.ip for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"}
        from torch.distributed import TCPStore

        other = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))
        assert other.get("asked") == b"answered"
        process.communicate("")
    assert found == ({"127.0.0.1"} if kept else {"::"})
