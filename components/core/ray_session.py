"""Ray for this process: join a cluster that answers, or start one here.

Where Ray would show a traceback, or nothing for minutes, there is one sentence: for settings that another job left in
the environment (RAY_ADDRESS, RAY_TMPDIR, TMPDIR), and for a machine that is too busy.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import ray
import ray._private.services as services
import ray._private.worker as ray_worker
from ray.exceptions import RayError

from components.core.errors import ConfigError, Terminated
from components.core.last_word import last_word
from components.core.leftovers import end_orphans, orphans
from components.core.machine import usable_cpus
from components.core.ray_access import loopback_only, private_token
from components.core.ray_servers import only_needed_servers
from components.core.ray_watch import end_children, left_ray

logger = logging.getLogger("littoral")
LOCAL = "local"  # in the place of an address: a Ray of our own
_OWN = {"littoral.ray": "own"}  # the label of its node
JOIN_TIMEOUT_S = 10  # how long a cluster may take to answer
START_WAITS_S = (30, 60, 120)  # for a node that is starting to be up; after each, it is started anew
START_TRIES = 6  # with those whose node ended by itself, as a raylet does without an agent after 15 s
ENDED_AT_ONCE = (
    "error: this process was ended without a word: killed (the system does so when memory runs out), crashed, or ended "
    "by Ray, whose node process (raylet) it had lost; "
)
AGAIN = "run the same command again"
ORPHANS_END_S = 10.0  # for what a Ray of ours leaves when it is shut down
MIN_FREE_MIB = 64  # of Ray's folder for temporary files
_SOCKET_BYTES = 107  # the longest path of a socket
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest of Ray's


@contextmanager
def ray_session(address: str | None, *, num_workers: int, trials: int = 1, again: str = AGAIN) -> Iterator[None]:
    """Join the cluster at `address`, or that of a submitted job; otherwise start Ray inside this process.

    `trials` streams with `num_workers` workers each run in it at the same time. `again`: what to do should this process
    be killed. Inside an open session nothing happens.
    """
    if ray.is_initialized():
        yield
        return
    quiet = not logger.isEnabledFor(logging.DEBUG)
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    level = logging.ERROR if quiet else logging.INFO
    if quiet:
        logging.getLogger("ray").setLevel(level)
    cpus = own_cpus(num_workers=num_workers, trials=trials)
    if quiet:
        ray_worker.print_to_stdstream = _noted  # with log_to_driver off, Ray still prints what its servers say
    open_ray(address, num_cpus=cpus, log_to_driver=not quiet, logging_level=level)
    for name in ("ray.data", "ray.train", "ray"):  # again, because Ray sets the level of its own when it starts
        logging.getLogger(name).setLevel(level)
    try:
        with last_word(ENDED_AT_ONCE + again):
            yield
    finally:
        if not left_ray():
            _shut_down(own=_starts_ray(address))


def own_cpus(*, num_workers: int, trials: int = 1) -> int:
    """Logical CPUs of a Ray that is started here: Ray Data must find some beside the workers, even on two cores."""
    return max(4, usable_cpus(), trials * (num_workers + 2))


def _shut_down(*, own: bool) -> None:
    """Leave Ray; of a Ray of our own nothing stays. Seldom one of its processes hangs in its own end, for hours."""
    node = [each for each in psutil.Process().children() if own and each.name() == "raylet"]
    ray.shutdown()
    if node and not psutil.wait_procs(node, timeout=ORPHANS_END_S)[1]:
        end_orphans(orphans(), wait_s=ORPHANS_END_S)


def is_own_ray() -> bool:
    """Whether the Ray session of this process is one that a command has started for itself, and no cluster."""
    return any(_OWN.items() <= (node.get("Labels") or {}).items() for node in ray.nodes())


def _starts_ray(address: str | None) -> bool:
    return (address or os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL


def _noted(data: Mapping[str, Any], ignore_prefix: bool) -> None:  # Any: as Ray has it
    """In place of Ray's printing; our own sentence says what happened."""
    logger.debug("Ray: %s", " ".join(map(str, data["lines"])))


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's own handler of SIGTERM: Ray puts one in its place that ends the process without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:  # by Ray's, which came while Ray was being started
        raise Terminated from end
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def open_ray(address: str | None, *, num_cpus: int, **options: Any) -> None:  # Any: ray.init's own options
    """Join the cluster at `address` (or RAY_ADDRESS); without either, start Ray here with `num_cpus` logical CPUs.

    Raises:
        ConfigError: nothing answers there within `JOIN_TIMEOUT_S`, or Ray does not start on this machine.
    """
    if _starts_ray(address):
        require_temp_dir()
        with _own_sigterm():
            start_ray(num_cpus=num_cpus, **options)
        return
    given = address or os.environ["RAY_ADDRESS"]
    source = "was given as address" if address else "is in RAY_ADDRESS"
    instead = "start that cluster, or give none" if address else "start that cluster, or unset RAY_ADDRESS"
    require_answer(given, source, instead)
    try:
        with _own_sigterm():
            ray.init(address=given, **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise ConfigError(f"{given} {source}, and Ray cannot join it ({reason}); {instead}.") from error


def require_answer(given: str, source: str, instead: str) -> None:
    """Raise `ConfigError` unless a server answers at `given`: Ray itself would try for minutes."""
    if given == "auto":
        return
    parts = urlsplit(given if "://" in given else f"//{given}")
    if parts.scheme not in ("", "ray"):
        raise ConfigError(
            f"{given} {source}, which is not the address of a Ray cluster; give HOST:PORT of its head, such as "
            "127.0.0.1:6379 (that of the dashboard is for `ray job` only)."
        )
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ConfigError(f"{given} {source}, which is not the address of a Ray cluster; give HOST:PORT of its head.")
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return  # it would not answer us
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=JOIN_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            raise ConfigError(
                f"{given} {source}, and no Ray cluster answers there within {JOIN_TIMEOUT_S} s; {instead} to have Ray "
                "start here."
            ) from None


def require_temp_dir() -> None:
    """Raise `ConfigError` where Ray cannot keep its temporary files: a path too long for sockets, or no room."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = Path(os.environ[name] if name else "/tmp").absolute()
    shown = f"{name} is {folder}" if name else f"{folder} is for temporary files"
    longest = len(os.fsencode(folder)) + len(_SOCKET)
    if longest > _SOCKET_BYTES:
        raise ConfigError(
            f"{shown}, {longest - _SOCKET_BYTES} bytes too long for the sockets that Ray keeps there; give a shorter "
            "one in RAY_TMPDIR, such as /tmp."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
        free = shutil.disk_usage(folder).free >> 20
    except OSError as error:
        raise ConfigError(
            f"{shown}, and Ray cannot write there ({error.strerror}); make room, or give another folder in RAY_TMPDIR."
        ) from error
    if free < MIN_FREE_MIB:
        raise ConfigError(
            f"{shown}, which has {free} MiB left, and Ray needs {MIN_FREE_MIB}; make room, or give another folder in "
            "RAY_TMPDIR."
        )


def start_ray(**options: Any) -> None:  # Any: ray.init's own options
    """Start Ray inside this process; raises `ConfigError` when its node is not up after the last try."""
    # Ray adds this to the niceness of what starts it, 15 by default: beside one busy process a run would stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nobody asks this Ray for the history of its tasks or for its metrics. Its control service would keep 100,000 of
    # the former in memory, and its agent a set of the latter for every dataset that was ever read.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # A process of Ray Train's that asks whether nodes are being drained. A run asks by itself: training/preemption.py.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    private_token()
    left = orphans()  # perhaps of a Ray that is just being left: they have until ours is up to end by themselves
    waits, begun = [*START_WAITS_S], time.monotonic()
    for number in range(1, START_TRIES + 1):
        before, tried = frozenset(psutil.Process().children()), time.monotonic()
        try:
            with (
                _node_may_take(waits[0]),
                _in_a_group_of_their_own(),
                loopback_only(),
                only_needed_servers(logs=bool(options.get("log_to_driver"))),
            ):
                ray.init(address="local", include_dashboard=False, labels=_OWN, **options)
            end_orphans(left)
            return
        except Exception as error:
            ray.shutdown()
            end_children(before)
            if "timed out during startup" not in str(error):
                reason = " ".join(str(error).split())[:200].rstrip(". ")
                raise ConfigError(f"Ray does not start on this machine ({reason}).") from error
            if time.monotonic() > tried + waits[0]:
                waits.pop(0)
            if not waits or number == START_TRIES:
                raise ConfigError(
                    f"Ray was not up within {time.monotonic() - begun:.0f} s, in {number} tries; this machine is too "
                    "busy: give the same command again when less runs on it."
                ) from error
            logger.warning("Ray was not up after %.0f s on this busy machine.", time.monotonic() - tried)


@contextmanager
def _node_may_take(wait_s: float) -> Iterator[None]:
    """Wait up to `wait_s` for the new node, and only 30 s for one that has ended by itself.

    Ray 2.60 gives up at the first refusal after 30 s.
    """
    ask, end_s = services.get_node, time.monotonic() + wait_s

    def ask_again(*arguments: Any) -> Any:  # Any: as Ray has it
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > end_s or not _has_raylet():
                    raise
                time.sleep(0.2)

    services.get_node = ask_again
    try:
        yield
    finally:
        services.get_node = ask


def _has_raylet() -> bool:
    """Whether a node process that this one started lives."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


@contextmanager
def _in_a_group_of_their_own() -> Iterator[None]:
    """Start Ray's processes out of reach of a signal to the command's whole group, such as `timeout` sends.

    Ray 2.60 keeps SIGINT from them and not SIGTERM, which would end them before the run can stop in order. They still
    end with this process: the kernel tells them of its death.
    """
    start = services.ConsolePopen

    def start_alone(*arguments: Any, **options: Any) -> Any:  # Any: those of subprocess.Popen
        return start(*arguments, process_group=0, **options)

    services.ConsolePopen = start_alone  # type: ignore[assignment, misc]  (called, and not used as a class)
    try:
        yield
    finally:
        services.ConsolePopen = start
