"""Which suites a run scores: generated ones by name, or folders that pipelines/prepare.py wrote."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from components.core.errors import ConfigError, DataError
from components.core.location import Location, Place, place
from components.core.options import listed
from components.data.cache import write_once
from components.data.generated import GENERATED_SUITES, suite_generator
from components.data.suite import Suite, open_suite
from components.data.tasks import TaskStream


def open_suites(names: Sequence[str], root: Place, stream: TaskStream) -> tuple[Suite, ...]:
    """The suites called `names`, in this order; generated ones are kept below `root`.

    Raises `ConfigError` for an unknown name, and for a suite whose name another suite or a task of the stream has:
    methods know tasks by name.
    """
    suites = tuple(_open(name, root) for name in names)
    taken = set(stream.task_names)
    for suite in suites:
        if suite.name in taken:
            raise ConfigError(f"evaluation.suites names {suite.name}, which is a task or a suite already; rename it.")
        taken.add(suite.name)
    return suites


def _open(name: str, root: Place) -> Suite:
    if name in GENERATED_SUITES:
        return _kept(name, root)
    folder = place(name)
    if isinstance(folder, Location) or folder.is_dir():
        return open_suite(folder)
    raise ConfigError(
        f"evaluation.suites names {name!r}, which is neither a folder written by pipelines/prepare.py nor one of "
        f"{listed(name, GENERATED_SUITES)}"
    )


def _kept(name: str, root: Place) -> Suite:
    """The generated suite from the cache, compared with its checksums, or newly written there."""
    generator = suite_generator(name)
    folder = root / generator.folder / name
    write_once(folder, "suite.json", partial(generator.write, name))
    try:
        return open_suite(folder)
    except DataError as error:
        raise DataError(f"{error} Delete {folder} to have it written again.") from error
