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

from components.core.job import submission_id
from components.core.visible import print_text
from components.training.config import default_run_id
from pipelines.cli import StreamCommand, parse
from pipelines.littoral import importing, program
from pipelines.origin import with_origin
from pipelines.presets import how_chosen

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
