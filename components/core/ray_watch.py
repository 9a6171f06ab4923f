"""Whether Ray's own servers still live, and the end of this process without them.

When its servers are gone, Ray lets a caller wait for up to a minute, and then ends the process from C++ without a word.
So whoever waits for Ray waits here, and looks at the servers meanwhile.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
import ray._private.worker as ray_worker
from ray.exceptions import RayError

from components.core.errors import LostError

ResultT = TypeVar("ResultT")

LOOK_EVERY_S = 0.2
ASK_EVERY_S = 5.0  # the head of a cluster that this process joined
SILENT_S = 45.0  # for which that head may not answer, as when it is restarted; Ray ends this process after 60 s
SERVERS = {"gcs_server": "its control service (gcs_server)", "raylet": "its node process (raylet)"}

_left = threading.Event()


def watched(function: Callable[[], ResultT], what: str, check: Callable[[], None] = lambda: None) -> ResultT:
    """Call `function` in a thread named `what` and wait for it. Signals interrupt the waiting, and what `check` raises.

    Raises:
        LostError: Ray's servers are lost, so that `function` would wait in vain; Ray is left then (`leave_ray`).
        Exception: what `function` raised.
    """
    done: Future[ResultT] = Future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001 (raised below, in the other thread)
            done.set_exception(error)

    threading.Thread(target=call, name=what, daemon=True).start()
    look = Look()
    while not wait([done], timeout=LOOK_EVERY_S).done:
        look.again()
        check()
    if done.exception() is not None:
        look.again()  # what it raised may come from a server's end, which says more
    if isinstance(done.exception(), RayError):
        look.at_own_node()
    return done.result()


class Look:
    """Looks at the servers of this process's Ray: its children, or the head of the cluster that it joined."""

    def __init__(self) -> None:
        self._answered = self._asked = time.monotonic()

    def again(self) -> None:
        """Raise `LostError` once a server is lost."""
        node = _node()
        if node is None:
            return
        for kind, process in node.dead_processes():
            if kind in SERVERS:
                self._lost(f"{SERVERS[kind]} {_how(process.returncode)}")
        if node.is_head() or time.monotonic() < self._asked + ASK_EVERY_S:
            return
        self._asked = time.monotonic()
        host, _, port = node.gcs_address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_EVERY_S).close()
            self._answered = time.monotonic()
        except OSError:
            if time.monotonic() > self._answered + SILENT_S:
                self._lost(f"its head at {node.gcs_address} has not answered for {SILENT_S:.0f} s")

    def at_own_node(self) -> None:
        """Raise `LostError` when this process's own node has left the cluster though its raylet still ends in order.

        Whoever asks such a raylet for anything is ended by Ray's C++ code, without a word.
        """
        here = ray.get_runtime_context().get_node_id()
        if any(node["NodeID"] == here and not node["Alive"] for node in ray.nodes()):
            self._lost(f"{SERVERS['raylet']} was told to end")

    def _lost(self, cause: str) -> None:
        logs = logs_folder()
        leave_ray()
        raise LostError(f"Ray was lost: {cause}; its logs are in {logs}")


def logs_folder() -> Path | None:
    """Where Ray writes its logs on this machine; None outside a session."""
    node = _node()
    return None if node is None else Path(node.get_logs_dir_path())


def _node() -> Any:  # Any: its types are not given
    return ray_worker._global_node


def left_ray() -> bool:
    """Whether this process has left a Ray whose servers are lost: nothing may be asked of Ray any more."""
    return _left.is_set()


def leave_ray() -> None:
    """End what is left of a Ray without its servers, and let this process end without asking it anything."""
    if _left.is_set():
        return
    _left.set()
    _silence_native_code()
    end_children()
    # Ray's own last steps wait for its servers. Registered last, this is called before them.
    atexit.register(_end_at_once)


def _silence_native_code() -> None:
    """Leave descriptor 2 to Ray's C++ threads, which go on complaining there; what Python says goes where it went."""
    before = sys.stderr
    if before is not sys.__stderr__ or before is None or before.fileno() != 2:
        return
    before.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=before.encoding, errors=before.errors)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def end_children(before: frozenset[psutil.Process] = frozenset()) -> None:
    """Kill Ray's processes below this one that are not in `before`; Ray itself would forget them."""
    ours = str(Path(ray.__file__).parent)
    found: list[psutil.Process] = []
    for child in set(psutil.Process().children()) - before:
        try:
            if any(ours in part for part in child.cmdline()):
                found += [child, *child.children(recursive=True)]
        except psutil.Error:
            continue
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=10)


def _how(code: int) -> str:
    """How a process ended, by its return code."""
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _end_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)
