"""Which suites a run scores: embedded ones by name, or folders that pipelines/prepare.py wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from components.core.errors import ConfigError, DataError
from components.data.embedded.mini_suites import MINI_SUITES, VERSION
from components.data.streams import StreamConfig, data_root, listed
from components.data.suites.suite import Suite, open_suite
from components.data.tasks import TaskStream


def open_suites(names: Sequence[str], stream_config: StreamConfig, stream: TaskStream) -> tuple[Suite, ...]:
    """The suites that `names` stand for, in this order; embedded ones are kept where generated splits are.

    Raises `ConfigError` for an unknown name, and for a suite whose name another suite or a task of the stream has:
    methods are told tasks by name.
    """
    suites = tuple(_open(name, data_root(stream_config)) for name in names)
    taken = set(stream.task_names)
    for suite in suites:
        if suite.name in taken:
            raise ConfigError(f"evaluation.suites names {suite.name}, which is a task or a suite already; rename it.")
        taken.add(suite.name)
    return suites


def _open(name: str, root: Path) -> Suite:
    if name in MINI_SUITES:
        return _kept(name, root / f"suites-v{VERSION}" / name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return open_suite(folder)
    raise ConfigError(
        f"evaluation.suites names {name!r}, which is neither a folder written by pipelines/prepare.py nor one of "
        f"{listed(name, MINI_SUITES)}"
    )


def _kept(name: str, folder: Path) -> Suite:
    """The embedded suite from the cache, verified, or newly written; a faster process's equal one stays."""
    if not (folder / "suite.json").is_file():
        scratch = folder.with_name(f".{name}.{os.getpid()}.new")
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            MINI_SUITES[name].write(name, scratch)
            scratch.rename(folder)
        except OSError as error:
            if not (folder / "suite.json").is_file():
                raise DataError(f"{folder} cannot be written ({error}); give another --stream.data-dir.") from error
            shutil.rmtree(scratch)
    try:
        return open_suite(folder)
    except DataError as error:
        raise DataError(f"{error} Delete {folder} to have it written again.") from error
