"""Teach the model in production one more stream of tasks, and put it into production only if it forgets little enough.

    littoral nightly --model NAME --first RUN                       RUN goes into production
    littoral nightly --model NAME --stream.name DIR --max-forgetting 5

What is in production is the version of MLflow's registered model NAME that its alias names. The command begins a new
run that continues from it. Within the budget for forgetting, the new checkpoint becomes a version, and the alias moves
to it. Above it, the alias stays, the run is kept as rejected, and the exit code is 3. The same command goes on after an
interruption, and says once more how the night ended.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("nightly"))

from collections.abc import Sequence
from dataclasses import dataclass

from components.core.errors import ConfigError
from components.training.config import RunConfig
from pipelines.cli import StreamCommand, parse, taken
from pipelines.littoral import importing, program
from pipelines.origin import hyphened

FIRST = (
    "--model",
    "--alias",
    "--first",
    "--stream.name",
    "--stream.order",
    "--evaluation.max-forgetting",
    "--run-id",
    "--storage",
    "--tracking.uri",
    "--wait",
    "--dry-run",
)
EXAMPLES = {
    "--model shop --first first": "run first goes into production",
    "--model shop --stream.name DIR --max-forgetting 5": "tonight's tasks, written by prepare",
}


@dataclass(frozen=True, kw_only=True)
class Nightly(StreamCommand):
    """A night's run, and the model that it is for."""

    model: str = ""
    """The registered model in MLflow whose alias says what is in production."""
    alias: str = "production"
    """The alias that moves to what the night has learned."""
    first: str | None = None
    """A run, by its id or folder, that goes into production where the alias names nothing yet."""


def main(arguments: Sequence[str]) -> int:
    """Find what is in production, learn, judge, and move the alias or not."""
    given = hyphened(arguments)
    if {"-h", "--help", "--help-all"} & {*given}:
        read(given)
    flags = {argument.partition("=")[0] for argument in given}
    for flag in ("--continue-from", "--at-task", "--score-again"):
        if flag in flags:
            raise ConfigError(f"a night continues from what is in production; leave {flag} out (--first names a run).")
    values = {name: taken(given, f"--{name}")[1] for name in ("model", "alias", "first", "storage", "tracking.uri")}
    if not values["model"]:
        raise ConfigError("--model is missing: the registered model in MLflow whose alias says what is in production.")
    with importing():  # torch, Ray, MLflow and what else no help needs
        from pipelines.night import Night
    night = Night.of(
        model=values["model"],
        alias=values["alias"] or Nightly.alias,
        first=values["first"],
        storage=values["storage"] or str(RunConfig().storage),
        tracking=values["tracking.uri"],
    )
    if {"--dry-run", "--print-config"} & flags:
        return night.spend(given, dry=True)
    with night.alone(wait="--wait" in flags):
        return night.spend(given)


def read(arguments: Sequence[str]) -> Nightly:
    """The whole command, once what it continues from is known."""
    return parse(
        arguments,
        program=program("nightly"),
        kind=Nightly,
        description=" ".join((__doc__ or "").split("\n\n")[0].split()),
        first=FIRST,
        examples=EXAMPLES,
    )
