"""What processes left that died before they could remove it: half-written files, and folders for temporary files."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from components.core.files import host_name


def temporary_folder(what: str) -> Path:
    """A new folder for temporary files, named by this machine and process; its user removes it.

    `what` is a word of small letters. Folders of processes that died are removed by `clear_temporary`.
    """
    return Path(tempfile.mkdtemp(prefix=f"littoral-{what}-{host_name()}-{os.getpid()}-"))


def clear_temporary() -> None:
    """Remove this user's temporary folders of processes of this machine that are no more."""
    named = re.compile(rf"littoral-[a-z]+-{re.escape(host_name())}-(\d+)-\w+")
    for folder in Path(tempfile.gettempdir()).glob("littoral-*"):
        name = named.fullmatch(folder.name)
        with suppress(OSError):
            if name and not _lives(int(name[1])) and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def clear_partial(folder: Path) -> None:
    """Remove below `folder` what processes of this machine that are no more had half written.

    Its caller holds the lock of `folder`: a process in another container may have this machine's name.
    """
    named = re.compile(rf"\..+\.{re.escape(host_name())}\.(\d+)\.partial")
    for path in list(folder.rglob(".*.partial")):
        name = named.fullmatch(path.name)
        if name and not _lives(int(name[1])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
