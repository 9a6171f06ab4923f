"""A server that plays the few parts of the Hugging Face hub that a download asks for: file lists and files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves the folder of every model below `root` (`root/OWNER/NAME`), and keeps what it was asked for."""

    def __init__(self, root: Path, *, gated: frozenset[str] = frozenset()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.gated = root, gated
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def served(root: Path, *, gated: frozenset[str] = frozenset()) -> Iterator[HubServer]:
    """The server, until the scope ends."""
    server = HubServer(root, gated=gated)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def _answer(self, *, body: bool) -> None:
        hub = cast(HubServer, self.server)
        path = unquote(urlsplit(self.path).path).strip("/")
        hub.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("api/models/").split("/")
        model = "/".join(parts[:2])
        folder = hub.root / model
        if model in hub.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body=body)
        elif not folder.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)
        elif path.startswith("api/models/"):
            files = sorted(file for file in folder.iterdir())
            listed = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _digest(f)} for f in files]
            info = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
            content = json.dumps(listed if parts[2] == "tree" else info).encode()
            self._send(200, content, {"Content-Type": "application/json"}, body=body)
        else:
            file = folder / parts[-1]
            content = file.read_bytes()
            self._send(200, content, {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT}, body=body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
