"""Light on purpose (no torch, no ray, no mlflow): where a run is recorded, and the command that continues it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.location import Location, Place, uri_or_path
from components.core.run_files import CONFIG_FILE, ORIGIN_FILE
from components.core.secrets import without_secrets
from components.core.shell import pipeline_command
from components.runs.folder_json import text_of
from components.tracking.config import TrackingConfig, recorded_uri, tracking_uri, ui_command


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Where a run's MLflow run is."""

    run_id: str
    store: str  # URI, without secrets
    see: str  # the command or the address that shows it


def tracking_of(config: dict[str, Any]) -> TrackingConfig:
    """Where a run's configuration has it recorded, as far as that is written down; raises `ConfigError`."""
    stored = config.get("tracking")
    uri = stored.get("uri") if isinstance(stored, dict) else None
    return TrackingConfig(uri=uri if isinstance(uri, str) else None)


def recorded(path: Place, link: dict[str, Any], tracking: TrackingConfig) -> Recorded | None:
    """What a run's link to MLflow says, also after its storage was moved; None for a run that is not recorded."""
    run_id, store, ui = link.get("run_id"), link.get("store"), link.get("ui")
    if not isinstance(run_id, str):
        return None
    uri = recorded_uri(tracking, path, store if isinstance(store, str) else None)
    see = ui if isinstance(ui, str) and ui.startswith("http") else ui_command(uri)
    return Recorded(run_id=run_id, store=without_secrets(uri), see=see)


def to_continue(path: Place, config: dict[str, Any], link: dict[str, Any], tracking: TrackingConfig) -> tuple[str, str]:
    """The command that continues a run by its own configuration, and what a person must know to give it."""
    if str(path).startswith("-"):
        path = path.absolute()
    arguments, notes = _place(path, "--run-id", link.get("run_id"), link.get("store"), tracking)
    stream = Path(text_of(config, "stream", "name"))
    if len(stream.parts) > 1 and not stream.is_absolute() and not stream.expanduser().is_dir():
        notes.append(f"give it in the folder that {stream} is in")
    evaluation = config.get("evaluation")  # of an older run without the field
    budget = evaluation.get("on_forgetting") if isinstance(evaluation, dict) else None
    if budget == "rollback" and (path / ORIGIN_FILE).is_file():  # as a night is, and perhaps another run
        notes.append("if `littoral nightly` began it, give that command again instead: it alone judges the night")
    return pipeline_command("coast.py", uri_or_path(path / CONFIG_FILE), *arguments), "; ".join(notes)


def given_as(arguments: Sequence[str], tracking: TrackingConfig) -> dict[str, Any]:
    """What sweep.json keeps of its command, to be read by `sweep_to_continue`; nothing where it would hold a secret.

    `arguments`: all but the id, the storage and the store.
    """
    if any(without_secrets(argument) != argument for argument in arguments):
        return {}
    store = without_secrets(tracking.uri) if tracking.enabled and tracking.uri else None
    return {"arguments": [*arguments], "in": str(Path.cwd()), "store": store}


def sweep_to_continue(path: Place, given: object, mlflow_run: object) -> tuple[str, str]:
    """The command that continues the sweep in `path`, from what `given_as` kept; otherwise a sentence alone."""
    arguments = given.get("arguments") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(arguments, list):
        return "", "give its `littoral sweep` command again, with the same --sweep-id"
    if str(path).startswith("-"):
        path = path.absolute()
    words, before = [str(argument) for argument in arguments], Path(str(given.get("in")))
    place, notes = _place(path, "--sweep-id", mlflow_run, given.get("store"), TrackingConfig())
    named = [value for word in words for value in word.split("=")[-1:] if not Path(value).is_absolute()]
    if before != Path.cwd() and any((before / value).exists() for value in named if value and value[0] != "-"):
        notes.append(f"give it in {before}, where it was given: it names files from there")
    return pipeline_command("sweep.py", *words, *place), "; ".join(notes)


def _place(
    path: Place, option: str, run_id: object, store: object, tracking: TrackingConfig
) -> tuple[list[object], list[str]]:
    """Arguments that say which run or sweep it is and where it is recorded, and what they cannot say."""
    # A value that begins with "-" would be read as an option, so it is joined to its own.
    name = [option, path.name] if not path.name.startswith("-") else [f"{option}={path.name}"]
    arguments: list[object] = [*name, "--storage", uri_or_path(path.parent)]
    if isinstance(store, str) and "***" in store and tracking.uri is None:
        return arguments, [f"give --tracking.uri or MLFLOW_TRACKING_URI too: of {store} the password is not kept"]
    if isinstance(run_id, str):
        uri = recorded_uri(tracking, path, store if isinstance(store, str) else None)
        if isinstance(path, Location) or uri != tracking_uri(tracking, path.parent):
            arguments += ["--tracking.uri", uri]  # else another MLflow run would begin in another store
    return arguments, []


def over_budget(said: dict[str, Any], learned: Sequence[str]) -> str:
    """How the budget for forgetting ended a run, from forgetting.json and the tasks learned; empty if it did not."""
    rows, budget = said.get("rows"), said.get("budget")
    last = rows[-1] if isinstance(rows, list) and rows else None
    if not isinstance(last, dict) or not isinstance(budget, dict) or last.get("after") not in learned[-1:]:
        return ""
    if last.get("exceeded") is not True or budget.get("action") not in ("stop", "rollback"):
        return ""
    done = "rolled back" if budget["action"] == "rollback" else "the last one to be learned"
    return (
        f"{last['after']} cost earlier tasks {last.get('points')} points and was {done}; give the command with a "
        f"--max-forgetting over {budget.get('allowed')} to accept it"
    )
