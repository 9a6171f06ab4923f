"""Tell how far runs are, from their folders alone: finished, running, stopped or dead, and what continues them.

    littoral status                  every run and sweep that has not finished
    littoral status first            one run, by its id or its folder
    littoral status sweep-a          a sweep with its trials

It only reads: a running run is not disturbed, and no process has to be up.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("status"))

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro

from components.core.errors import ConfigError
from components.core.location import Place, is_uri, place, uri_or_path
from components.core.lock import Holder
from components.core.options import suggest, to_plain
from components.core.reading import is_plain_name
from components.core.run_files import CONFIG_FILE, SWEEP_FILE
from components.core.shell import command_line
from components.core.visible import print_text, visible_line
from components.runs.status import RunStatus, State, SweepStatus, progress, read_status, read_storage
from pipelines.littoral import read_options


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Which run, and where runs are."""

    run: Annotated[str | None, tyro.conf.Positional] = None
    """The id of a run or sweep in the storage, or its folder or URI; without it: all that have not finished."""
    storage: str = "runs"
    """Folder that holds runs, a path or a URI such as s3://bucket/runs."""
    json: bool = False
    """Print JSON instead of lines: an object for one run, a list without RUN."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Read the folders and print what they say."""
    command = read_options(StatusOptions, arguments, name="status", description=(__doc__ or "").split("\n\n")[0])
    storage = place(command.storage)
    if command.run is not None:
        found = read_status(folder_of(command.run, storage))
        print_text(as_json(found) if command.json else block(found))
        return 0
    every = read_storage(storage)
    shown = [each for each in every if each.state not in ("finished", "rejected", "foreign")]
    if command.json:
        print_text(json.dumps([to_plain(each) for each in shown], indent=1))
        return 0
    for each in shown:
        print_text(f"{block(each)}\n")
    finished = sum(each.state == "finished" for each in every)
    print_text(f"{len(shown)} not finished, {finished} finished in {storage}; `littoral list` shows all in lines")
    return 0


def as_json(found: RunStatus | SweepStatus) -> str:
    """One run or sweep as JSON."""
    return json.dumps(to_plain(found), indent=1)


def folder_of(given: str, storage: Place) -> Place:
    """The folder that `given` names, by an id in the storage first; raises `ConfigError` where there is none."""
    inside = isinstance(storage, Path) or (given not in (".", "..") and is_plain_name(given))
    for folder in (*([storage / given] if inside and not is_uri(given) else []), place(given)):
        if given.strip("./") and folder.is_dir():
            _require_no_storage(folder)
            return folder
    if is_uri(given):  # it names its own storage
        storage, given = place(given).parent, place(given).name
    known = [each.name for each in storage.iterdir() if each.is_dir()] if storage.is_dir() else []
    listing = command_line("littoral", "list", "--storage", uri_or_path(storage))
    raise ConfigError(
        f"there is no run {given!r} in {storage}; `{listing}` shows those that there are.{suggest(given, known)}"
    )


def _require_no_storage(folder: Place) -> None:
    """Raise `ConfigError` where the folder holds runs, and is none itself."""
    if not any((folder / name).is_file() for name in (CONFIG_FILE, SWEEP_FILE)) and any(
        folder.glob(f"*/{CONFIG_FILE}")
    ):
        storage = command_line("--storage", uri_or_path(folder))
        raise ConfigError(f"{folder} is not a run but holds some; give one of them, and {storage} for all.")


def block(found: RunStatus | SweepStatus) -> str:
    """A run or a sweep in lines, a fact each."""
    facts = sweep_facts(found) if isinstance(found, SweepStatus) else run_facts(found)
    width = max(map(len, facts)) + 2
    return "\n".join(
        [
            visible_line(f"{found.kind} {found.path}"),
            *(f"  {name:{width}}{visible_line(text)}" for name, text in facts.items() if text),
        ]
    )


def run_facts(run: RunStatus) -> dict[str, str]:
    """By name, in the order in which they are shown; empty texts are left out."""
    return {
        "state": state_of(run.state, run.holder, stopping=run.stop_requested and run.state == "running"),
        "now": "" if not run.doing else f"{run.doing} (at {when(run.doing_since)})",
        "problem": run.problem,
        "last moved": when(run.moved),
        "learns": "" if not run.method else f"{run.stream} by {run.method} on {run.backbone}, seed {run.seed}",
        "continues": "" if not run.origin else f"run {run.origin}",
        "done": "" if not run.method else f"{progress(run)}; {run.rows} row{'' if run.rows == 1 else 's'} of scores",
        "figures": ", ".join(f"{name} {value:.2f}" for name, value in run.figures.items()),
        "mlflow": "" if run.mlflow is None else f"run {run.mlflow.run_id} in {run.mlflow.store}",
        "see it": "" if run.mlflow is None else run.mlflow.see,
        "continue": run.command,
        "note": run.note,
    }


def sweep_facts(sweep: SweepStatus) -> dict[str, str]:
    """The same for a sweep: its own, then a line for each trial. MLflow has it where it has its trials."""
    recorded = next((each.mlflow for each in sweep.trials if each.mlflow is not None), None)
    place = "" if recorded is None else f" in {recorded.store}"
    return {
        "state": state_of(sweep.state, sweep.holder),
        "problem": sweep.problem,
        "last moved": when(sweep.moved),
        "learns": f"{sweep.stream} by {sweep.method} on {sweep.backbone}",
        "varies": ", ".join(f"{name} = {values}" for name, values in sweep.space.items()),
        "mlflow": "" if sweep.mlflow_run is None else f"run {sweep.mlflow_run}{place}",
        "see it": "" if sweep.mlflow_run is None or recorded is None else recorded.see,
        "continue": sweep.command or sweep.note,
        "note": sweep.note if sweep.command else "",
        "trials": str(len(sweep.trials)),
        **{each.path.name: trial_line(each) for each in sweep.trials},
    }


def trial_line(trial: RunStatus) -> str:
    """A trial of a sweep in one line."""
    facts = {**run_facts(trial), "figures": figure(trial.figures.get("final_average"), "final average ")}
    return "; ".join(facts[name] for name in ("state", "now", "done", "figures", "problem") if facts.get(name))


def state_of(state: State, holder: Holder | None, *, stopping: bool = False) -> str:
    """The state with whose it is: `running: process 12 on node-1 since ...`."""
    if holder is None or state in ("finished", "stopped", "rejected", "foreign", "damaged"):
        return state
    if state == "dead":
        return f"dead: {holder.name} is gone" if holder.process else "dead"
    if state == "unclear":
        return f"unclear: dead, or still run by {holder.name}, whose lock this machine may not see"
    return f"running{', asked to stop' if stopping else ''}: {holder.name}"


def when(moved: datetime | None) -> str:
    """Local time, to the second."""
    return "" if moved is None else f"{moved:%Y-%m-%d %H:%M:%S}"


def figure(value: float | None, label: str = "") -> str:
    """A score with two decimals; empty without one."""
    return "" if value is None else f"{label}{value:.2f}"
