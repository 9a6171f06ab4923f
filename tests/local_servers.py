"""Servers that a test starts on this machine: a free port to give them, and waiting until they answer."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
from pyarrow import fs

SOMEBODY = {  # who asks a store, in the environment
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "anything",
    "AWS_REGION": "us-east-1",
}
DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on; all are held until the last is found, so that none comes twice."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until_it_answers(
    port: int, server: subprocess.Popen[bytes], log: Path, *, host: str = "127.0.0.1", seconds: float = 120
) -> None:
    """Fails with the end of the server's log when it ends or does not answer in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no server at port {port}: {log.read_text()[-2000:]}")


def reachable_from_elsewhere(pid: int) -> set[tuple[str, str]]:
    """Names and addresses of what a process and those below it listen on, loopback left out; some must be there."""
    found: set[tuple[str, str]] = set()
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found |= {(each.name(), one.laddr.ip) for one in each.net_connections() if one.status == psutil.CONN_LISTEN}
    assert found
    return {(name, ip) for name, ip in found if not ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback}


def s3_client(port: int, *, host: str = "127.0.0.1") -> fs.FileSystem:
    """What `s3_server` holds; it asks for no other name and secret."""
    return fs.S3FileSystem(
        access_key=SOMEBODY["AWS_ACCESS_KEY_ID"],
        secret_key=SOMEBODY["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=f"{host}:{port}",
        scheme="http",
        region=SOMEBODY["AWS_REGION"],
        allow_bucket_creation=True,
        allow_delayed_open=True,  # small files are put in one request instead of in parts
    )


@contextmanager
def s3_server(folder: Path, bucket: str, *, host: str = "127.0.0.1") -> Iterator[int]:
    """The port of an S3-compatible server with an empty bucket, which anybody may read and write; `folder`: its log."""
    (port,) = free_ports(1)
    log = folder / "s3.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        wait_until_it_answers(port, server, log, host=host)
        s3_client(port, host=host).create_dir(bucket)
        yield port
    finally:
        server.terminate()
        server.wait()


def s3_uri(port: int, path: str) -> str:
    """Of `path`, which begins with its bucket, at a server of this machine."""
    return f"s3://{path}?endpoint_override=127.0.0.1:{port}&scheme=http"


class _Denies(BaseHTTPRequestHandler):
    """A store that answers every request with 403."""

    def _deny(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(DENIED)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(DENIED)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _deny

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def denying_server() -> Iterator[int]:
    """The port of a store that lets nobody in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Denies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
