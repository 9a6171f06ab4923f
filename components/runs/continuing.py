"""Light on purpose (no torch, no ray, no mlflow): where a run is recorded, and the command that continues it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.naming import without_secrets
from components.core.run_files import CONFIG_FILE
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


def recorded(path: Path, link: dict[str, Any], tracking: TrackingConfig) -> Recorded | None:
    """What a run's link to MLflow says, also after its storage was moved; None for a run that is not recorded."""
    run_id, store, ui = link.get("run_id"), link.get("store"), link.get("ui")
    if not isinstance(run_id, str):
        return None
    uri = recorded_uri(tracking, path, store if isinstance(store, str) else None)
    see = ui if isinstance(ui, str) and ui.startswith("http") else ui_command(uri)
    return Recorded(run_id=run_id, store=without_secrets(uri), see=see)


def to_continue(path: Path, config: dict[str, Any], link: dict[str, Any], tracking: TrackingConfig) -> tuple[str, str]:
    """The command that continues a run by its own configuration, and what a person must know to give it."""
    notes = list[str]()
    if str(path).startswith("-"):
        path = path.absolute()
    # A value that begins with "-" would be read as an option, so it is joined to its own.
    name = ["--run-id", path.name] if not path.name.startswith("-") else [f"--run-id={path.name}"]
    arguments = [path / CONFIG_FILE, *name, "--storage", path.parent]
    run_id, store = link.get("run_id"), link.get("store")
    uri = recorded_uri(tracking, path, store if isinstance(store, str) else None)
    if isinstance(store, str) and "***" in store and tracking.uri is None:
        notes.append(f"give --tracking.uri or MLFLOW_TRACKING_URI too: of {store} the password is not kept")
    elif isinstance(run_id, str) and uri != tracking_uri(tracking, path.parent):
        arguments += ["--tracking.uri", uri]  # else another MLflow run would begin in another store
    stream = Path(text_of(config, "stream", "name"))
    if len(stream.parts) > 1 and not stream.is_absolute() and not stream.expanduser().is_dir():
        notes.append(f"give it in the folder that {stream} is in")
    return pipeline_command("coast.py", *arguments), "; ".join(notes)


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
