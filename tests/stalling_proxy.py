"""A TCP proxy in front of a server of a test: it can hold back all requests, for a while or for good."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class StallingProxy:
    """Forwards connections to `port` on this machine. Use as a context; `self.port` is where it listens.

    While it stalls, connections are accepted and nothing is answered. What came meanwhile is delivered afterwards, also
    of clients that have given up: a server whose process stood still does the same.
    """

    def __init__(self, port: int) -> None:
        self._server, self._open, self._closed = port, threading.Event(), False
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self.held = 0  # pieces of requests that were held back
        self._at: bytes | None = None

    def stall(self) -> None:
        """Hold back whatever clients send from now on."""
        self._open.clear()

    def stall_at(self, text: str) -> None:
        """Hold back everything from the next request on that has `text` in it."""
        self._at = text.encode()

    def go_on(self) -> None:
        """Deliver what was held back, and all that follows."""
        self._open.set()

    def __enter__(self) -> StallingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.close()
        self._open.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            data = client.recv(1 << 16)
            self._wait(data)
            with socket.create_connection(("127.0.0.1", self._server)) as server:
                back = threading.Thread(target=self._answer, args=(server, client), daemon=True)
                back.start()
                while data and not self._closed:
                    server.sendall(data)
                    data = client.recv(1 << 16)
                    self._wait(data)
                server.shutdown(socket.SHUT_WR)
                back.join(timeout=60)

    def _wait(self, data: bytes) -> None:
        if self._at is not None and self._at in data:
            self._at = None
            self._open.clear()
        if not self._open.is_set():
            self.held += 1
            self._open.wait()

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                with suppress(OSError):  # the client has given up; the server is heard to its end
                    client.sendall(data)
            client.shutdown(socket.SHUT_WR)
