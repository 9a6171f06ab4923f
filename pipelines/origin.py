"""What --continue-from RUN implies on a command line, before the options are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.core.errors import ConfigError
from components.core.location import Place, is_uri, place, uri_or_path
from components.core.run_files import CONFIG_FILE
from components.training.config import RunConfig
from pipelines.cli import taken

UNDERSCORED = ("--continue_from", "--run_id", "--at_task", "--score_again")  # tyro takes both


def hyphened(arguments: Sequence[str]) -> list[str]:
    """The arguments with the flags of `UNDERSCORED` as help writes them."""
    return [argument.replace("_", "-") if argument in UNDERSCORED else argument for argument in arguments]


def with_origin(arguments: Sequence[str]) -> tuple[list[str], Place | None]:
    """The arguments with what --continue-from RUN implies, and that run's folder; None without the option.

    Implied are, where they are not given: RUN's config.json as preset, the storage that RUN is in, and no order of
    tasks for another stream. A run that has begun is continued by its own config.json: RUN may be gone by then.
    """
    given = hyphened(arguments)
    values = {flag: taken(given, flag)[1] for flag in ("--continue-from", "--storage", "--run-id", "--stream.name")}
    run, storage = values["--continue-from"], values["--storage"]
    if run is None:
        for flag in ("--at-task", "--score-again"):
            if flag in given:
                raise ConfigError(f"{flag} says where to begin in another run; name that run with --continue-from.")
        return given, None
    folder = _folder_of(run, storage)
    own_storage = folder.parent if storage is None else place(storage)
    configuration = _configuration(folder, own_storage, values["--run-id"])
    if given[0].startswith("-"):
        given = [uri_or_path(configuration), *given]
    if storage is None:
        given += ["--storage", uri_or_path(own_storage)]
    if values["--stream.name"] is not None and not any(each.startswith("--stream.order") for each in given):
        given += ["--stream.order"]  # none: that of the preset is of another stream
    return given, folder


def _folder_of(run: str, storage: str | None) -> Place:
    """The folder of RUN: an id or a path in the storage, an id in the default one, a path or a URI."""
    is_id = not is_uri(run) and len(Path(run).expanduser().parts) == 1
    inside = None if storage is None else place(storage)
    if inside is not None and (is_id or (isinstance(inside, Path) and not is_uri(run))) and (inside / run).is_dir():
        return inside / run
    return place(RunConfig().storage) / run if is_id else place(run)


def _configuration(folder: Place, storage: Place, run_id: str | None) -> Place:
    """The config.json to start from: of the new run where it has begun, else of the run in `folder`."""
    if run_id is not None and (begun := storage / run_id / CONFIG_FILE).is_file():
        return begun
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{folder} is not the folder of a run; give --continue-from an id in --storage, or a folder.")
    return folder / CONFIG_FILE
