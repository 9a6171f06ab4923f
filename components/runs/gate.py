"""The gate between a run and production: the alias moves to the run's checkpoint, or stays, and gate.json says why.

gate.json comes last: where it says "accepted", version and alias are there. A process that was killed before gives the
same command again, which finds the version, or the alias on it, and goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from components.core.errors import ConfigError
from components.core.files import write_json
from components.core.options import read_kept, to_plain
from components.core.reading import read_object
from components.core.run_files import GATE_FILE, LINK_FILE
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.tracking.aliases import Gate, Reference, Registered, Registry
from components.training.lineage import Origin, read_origin


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided about a run."""

    gate: Gate
    model: str  # models:/NAME@ALIAS
    checkpoint: str  # of the run: 03-iconqa
    verdict: str  # what the budget for forgetting says
    before: str  # what the run continued from, which was in production then: first/02-docvqa
    version: str | None  # of the model; None for a run that was rejected
    decided: str  # local time with its offset

    def text(self) -> str:
        """For people."""
        if self.gate == "rejected":
            return f"rejected on {self.decided}: {self.verdict}; {self.model} was left at {self.before}"
        return f"accepted on {self.decided}, as version {self.version} at {self.model}: {self.verdict}"


def read_decision(run_dir: Path) -> Decision | None:
    """What was decided about the run in a folder; None before. Raises `ConfigError` for a damaged file."""
    return read_kept(Decision, run_dir / GATE_FILE, "delete it to have the run judged again")


def accept(registry: Registry, model: Reference, run_dir: Path, verdict: str) -> Registered:
    """Register the run's newest checkpoint, and have the alias name it.

    Raises `ConfigError` where the alias names something else by now than what the run continued from.
    """
    origin, learned, mlflow_run = _origin(run_dir), _learned(run_dir)[0], recorded(run_dir)
    now = registry.find(model)
    there = now is not None and (now.run, now.learned) == (run_dir.name, learned)
    if not there and (now is None or (now.run, now.learned) != (origin.run, origin.at_task)):
        raise ConfigError(
            f"{model} is {now or 'nothing'} now, and was {origin.named} when run {run_dir.name} began; nothing was "
            "changed. To learn the task on top of what is there now, give another --run-id."
        )
    version = registry.add(model.name, mlflow_run, learned, verdict)
    if not there:
        registry.move(model, version.version)
    registry.note(mlflow_run, "accepted", verdict)
    _write(run_dir, "accepted", model, verdict, version.version)
    return version


def reject(registry: Registry, model: Reference, run_dir: Path, verdict: str) -> None:
    """Write down that the run does not go into production; the file first, since MLflow may be away."""
    _write(run_dir, "rejected", model, verdict, None)
    registry.note(recorded(run_dir), "rejected", verdict)


def recorded(run_dir: Path) -> str:
    """The id of the run's MLflow run; raises `ConfigError` for a run that has none."""
    link = run_dir / LINK_FILE
    found = read_object(link, ConfigError, "give it back").get("run_id") if link.is_file() else None
    if not isinstance(found, str):
        raise ConfigError(f"run {run_dir.name} is not recorded in MLflow, so no version can stand for its checkpoint.")
    return found


def _origin(run_dir: Path) -> Origin:
    origin = read_origin(run_dir)
    if origin is None:
        raise ConfigError(f"run {run_dir.name} continued from no other run; the alias moves from one run to the next.")
    return origin


def _learned(run_dir: Path) -> tuple[int, str]:
    matrix = ScoreMatrix.read(run_dir / MATRIX_FILE)
    return matrix.num_learned, matrix.after[-1]


def _write(run_dir: Path, gate: Gate, model: Reference, verdict: str, version: str | None) -> None:
    origin, (learned, task) = _origin(run_dir), _learned(run_dir)
    decision = Decision(
        gate=gate,
        model=str(model),
        checkpoint=f"{learned:02d}-{task}",
        verdict=verdict,
        before=f"{origin.run}/{origin.at_task:02d}-{origin.tasks[-1]}",
        version=version,
        decided=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    )
    write_json(run_dir / GATE_FILE, to_plain(decision))
