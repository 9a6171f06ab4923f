"""What processes left that died before they could remove it: half-written files, temporary folders, Ray's processes."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from components.core.location import Location, Place
from components.core.machine import host_name, temporary_prefix

RAYLET = "RAY_RAYLET_PID"  # in the environment of each process that a node process of Ray's starts
logger = logging.getLogger("littoral")


def temporary_folder(what: str) -> Path:
    """A new folder for temporary files, named by this machine and process; its user removes it.

    `what` is a word of small letters. Folders of processes that died are removed by `clear_temporary`.
    """
    return Path(tempfile.mkdtemp(prefix=temporary_prefix(what)))


def clear_temporary() -> None:
    """Remove this user's temporary folders of processes of this machine that are no more."""
    named = re.compile(rf"littoral-[a-z]+-{re.escape(host_name())}-(\d+)-\w+")
    for folder in Path(tempfile.gettempdir()).glob("littoral-*"):
        name = named.fullmatch(folder.name)
        with suppress(OSError):
            if name and not _lives(int(name[1])) and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def clear_partial(folder: Place) -> None:
    """Remove below `folder` what processes of this machine that are no more had half written.

    Its caller holds the lock of `folder`: a process in another container may have this machine's name. In a store that
    moves files, what was set aside for the moment between two moves is put back.
    """
    if isinstance(folder, Location):
        _clear_partial_in_store(folder)
        return
    named = re.compile(rf"\..+\.{re.escape(host_name())}\.(\d+)\.partial")
    for path in list(folder.rglob(".*.partial")):
        name = named.fullmatch(path.name)
        if name and not _lives(int(name[1])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _clear_partial_in_store(folder: Location) -> None:
    """The same where the lock alone says that nobody writes."""
    if folder.whole_puts:
        return
    for name in folder.files_below():
        above, _, last = name.rpartition("/")
        aside = re.fullmatch(r"\.(.+)\.older", last)
        target = folder / f"{above}/{aside[1]}".lstrip("/") if aside else None
        if target is not None and not target.exists():
            target.put((folder / name).read_bytes())
        if aside or re.fullmatch(r"\..+\.\d+\.partial", last):
            (folder / name).unlink(missing_ok=True)


def orphans(among: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """This user's processes of a Ray whose node process (raylet) is no more. `among` None: of all.

    They end by themselves within seconds, unless one hangs in its own end; its memory would be taken as long.
    """
    return [process for process in among or psutil.process_iter() if _is_orphan(process)]


def end_orphans(found: Iterable[psutil.Process], *, wait_s: float = 0.0) -> list[int]:
    """Kill those of `orphans` that have not ended by themselves within `wait_s`; their ids."""
    ended = [process for process in psutil.wait_procs(list(found), timeout=wait_s)[1] if _is_orphan(process)]
    for process in ended:
        with suppress(psutil.Error):
            process.kill()
    if ended:
        number = "a process" if len(ended) == 1 else f"{len(ended)} processes"
        logger.log(logging.INFO if wait_s else logging.WARNING, "Ended %s that a Ray had left.", number)
    return [process.pid for process in ended]


def _is_orphan(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline()[:1])
        # What a worker started itself has the same environment, and may be meant to outlive Ray.
        if not title.startswith("ray::") or process.uids().real != os.getuid():
            return False
        raylet = process.environ().get(RAYLET, "")
        return raylet.isdecimal() and _numbered_alike(process.pid) and not _is_raylet(int(raylet))
    except (psutil.Error, OSError):
        return False


def _numbered_alike(process: int) -> bool:
    """Whether the ids that it knows are ours: those of a container that can be seen from here are others."""
    own, its = Path("/proc/self/ns/pid"), Path(f"/proc/{process}/ns/pid")
    return not own.exists() or own.readlink() == its.readlink()


def _is_raylet(process: int) -> bool:
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and "raylet" in " ".join(found.cmdline()[:1])
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # another user's
        return True


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
