"""Teach a stream of image-instruction tasks to a frozen vision-language model, one after another, and score every task
seen so far after each one. By default: Continual LLaVA on mini-COAST's domain stream with the embedded model.

    littoral coast [PRESET] [--method NAME] [--run-id ID] [--storage DIR] [--dotted.field VALUE ...]
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("coast"))

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from components.core.errors import ConfigError
from components.core.job import submission_id
from components.core.location import Place, is_uri, place, uri_or_path
from components.core.run_files import CONFIG_FILE
from components.core.visible import print_text
from components.training.config import RunConfig, default_run_id
from pipelines.cli import StreamCommand, parse, taken
from pipelines.littoral import importing, program
from pipelines.presets import how_chosen

UNDERSCORED = ("--continue_from", "--run_id", "--at_task", "--score_again")  # tyro takes both
EXAMPLES = {
    "pocket": "a minute or so: see how a run goes",
    "--method lcia --run-id one": "the same id goes on where it stopped",
    "--stream.name DIR": "your own tasks, written by prepare",
    "--continue-from one ...": "a new run: what run one learned, and more",
}


def main(arguments: Sequence[str]) -> int:
    """Plan, train and score the stream, record it, and show the score matrix."""
    arguments, origin_folder = with_origin(arguments)
    command = parse(
        arguments,
        program=program("coast"),
        kind=StreamCommand,
        description=" ".join((__doc__ or "").split("\n\n")[0].split()),
        examples=EXAMPLES,
    )
    config = command.run
    if not config.run_id:  # a job's own id, so that the job and its run have one name
        config = replace(config, run_id=submission_id() or default_run_id(config))
    if command.print_config:
        chosen = how_chosen(command.preset)
        print_text(json.dumps(config.to_json() | ({} if chosen is None else {"chosen": chosen}), indent=2))
        return 0

    with importing():  # torch, Ray and what else no help and no configuration needs
        from pipelines.learning import learn
    return learn(config, command, origin_folder)


def with_origin(arguments: Sequence[str]) -> tuple[list[str], Place | None]:
    """The arguments with what --continue-from RUN implies, and that run's folder; None without the option.

    Implied are, where they are not given: RUN's config.json as preset, the storage that RUN is in, and no order of
    tasks for another stream. A run that has begun is continued by its own config.json: RUN may be gone by then.
    """
    given = [argument.replace("_", "-") if argument in UNDERSCORED else argument for argument in arguments]
    values = {flag: taken(given, flag)[1] for flag in ("--continue-from", "--storage", "--run-id", "--stream.name")}
    run, storage, run_id = values["--continue-from"], values["--storage"], values["--run-id"]
    if run is None:
        for flag in ("--at-task", "--score-again"):
            if flag in given:
                raise ConfigError(f"{flag} says where to begin in another run; name that run with --continue-from.")
        return given, None
    named = not is_uri(run) and len(Path(run).expanduser().parts) == 1  # an id, in the storage
    folder, inside = place(run), None if storage is None else place(storage)
    if inside is not None and (named or (isinstance(inside, Path) and not is_uri(run))) and (inside / run).is_dir():
        folder = inside / run
    elif named:
        folder = place(RunConfig().storage) / run
    storage = uri_or_path(folder.parent) if storage is None else storage
    preset = folder / CONFIG_FILE
    if run_id is not None and (begun := place(storage) / run_id / CONFIG_FILE).is_file():
        preset = begun
    elif not preset.is_file():
        raise ConfigError(f"{folder} is not the folder of a run; give --continue-from an id in --storage, or a folder.")
    if given[0].startswith("-"):
        given = [uri_or_path(preset), *given]
    if values["--storage"] is None:
        given += ["--storage", storage]
    if values["--stream.name"] is not None and not any(each.startswith("--stream.order") for each in given):
        given += ["--stream.order"]  # none: that of the preset is of another stream
    return given, folder
