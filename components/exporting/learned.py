"""A run as it was after one of its tasks, and what of it can be exported. Nothing heavy is loaded here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from components.core.checkpoint import Checkpoint, read_checkpoint
from components.core.errors import CheckpointError, ConfigError
from components.core.location import Location, Place
from components.core.options import Json
from components.core.run_files import KEPT_CHECKPOINTS, STATE_FILE
from components.methods.options.base import ExportFormat
from components.models.source import model_source
from components.runs.results import FinishedRun, read_run
from components.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class LearnedRun:
    """A run after `task`, with the backbone where it is now."""

    run: FinishedRun
    config: RunConfig
    checkpoint: Checkpoint
    number: int  # of the task, from 1
    task: str

    @property
    def structure(self) -> Mapping[str, Json]:
        """The JSON part of the method's state."""
        return cast("Mapping[str, Json]", self.checkpoint.state["method_structure"])

    @property
    def tasks(self) -> list[str]:
        """Those that the method has learned, in order."""
        return cast("list[str]", self.structure["tasks"])

    @property
    def groups(self) -> dict[str, list[str]]:
        """Of a hard method: its sets of weights by name, with the tasks that each serves; {} for others."""
        method = self.config.method
        return method.export_groups(self.structure) if method.export == "hard" else {}


def read_learned(run_dir: Place, task: str | None, backbone: str | None) -> LearnedRun:
    """The run in the folder `run_dir` after `task`: its name or number from 1; None: the last one learned.

    `backbone` says where the base weights are now, if not where they were. Raises `ConfigError` or `CheckpointError`.
    """
    if run_dir.is_file():
        raise ConfigError(f"{run_dir} is a record, which holds no weights; give the run's folder, STORAGE/RUN-ID.")
    run = read_run(run_dir, unfinished=True)
    number, name, folder = _chosen(run, task)
    checkpoint = read_checkpoint(folder, by_copies=True)
    structure = checkpoint.state.get("method_structure")
    if not isinstance(structure, dict) or not isinstance(structure.get("tasks"), list):
        raise CheckpointError(f"{folder} has no method state; it is damaged, choose another task.")
    config = (
        run.config if backbone is None else replace(run.config, backbone=replace(run.config.backbone, name=backbone))
    )
    return LearnedRun(run=run, config=config, checkpoint=checkpoint, number=number, task=name)


def check_export(learned: LearnedRun, to: ExportFormat, group: str | None, out: Path) -> None:
    """Raise `ConfigError` for what cannot be exported as asked; the base weights, which may take long, come last."""
    _check_format(learned, to)
    _check_group(learned, to, group)
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists and is not replaced; give --out a new folder.")
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"cannot write to {existing}; give --out a folder that can be made.")
    backbone = learned.config.backbone.name
    if model_source(learned.config.backbone).fingerprint() != learned.checkpoint.state.get("backbone"):
        raise ConfigError(
            f"the weights of backbone {backbone!r} are not those that run {learned.run.path.name} was trained on; say "
            "with --backbone where those are."
        )


def _check_format(learned: LearnedRun, to: ExportFormat) -> None:
    method, formats = learned.config.method, learned.config.method.export_formats
    if to in formats:
        return
    if not formats:
        raise ConfigError(f"{method.name} learns nothing, so there is nothing to export; serve the backbone itself.")
    why = (
        "mixes its adapters anew for every sample"
        if method.export == "soft"
        else "adds more than a LoRA to the weights"
    )
    raise ConfigError(f"{method.name} {why} and cannot be exported to {to}; give --to {' or '.join(formats)}.")


def _check_group(learned: LearnedRun, to: ExportFormat, group: str | None) -> None:
    groups = learned.groups
    known = "; ".join(f"{name} ({', '.join(tasks)})" for name, tasks in groups.items())
    if group is not None and (not groups or to != "merged"):
        what = "all groups go into one export" if groups else f"{learned.config.method.name} has one set of weights"
        raise ConfigError(f"--group {group} names what to merge, but here {what}; leave --group out.")
    if to == "merged" and groups and group not in groups:
        given = "needs --group" if group is None else f"has no group {group!r}"
        raise ConfigError(
            f"{learned.config.method.name} has a set of weights for each group, so --to merged {given}; choose one of "
            f"{known}."
        )


def _chosen(run: FinishedRun, task: str | None) -> tuple[int, str, Place]:
    """Number, name and checkpoint of a learned task."""
    found: dict[int, tuple[str, Place]] = {}
    run_dir = run.path
    for name in sorted(_names(run)):
        match, folder = re.fullmatch(r"(\d+)-(.+)", name), run_dir / KEPT_CHECKPOINTS / name
        if match and (folder.is_dir() if isinstance(folder, Path) else (folder / STATE_FILE).is_file()):
            found[int(match[1])] = (match[2], folder)
    if not found:
        raise ConfigError(f"the run in {run_dir} has learned no task yet (no folder in its checkpoints/).")
    if task is None:
        number = max(found)
        return number, *found[number]
    for number, (name, folder) in sorted(found.items()):
        if task == name:
            return number, name, folder
    if task.isdecimal() and int(task) in found:
        return int(task), *found[int(task)]
    learned = ", ".join(f"{number} {name}" for number, (name, _) in sorted(found.items()))
    raise ConfigError(f"the run in {run_dir} has not learned task {task!r}; it has learned {learned}.")


def _names(run: FinishedRun) -> set[str]:
    """Names that checkpoints of learned tasks have, or may have: a store's listing may lag behind the matrix."""
    names = {each.name for each in (run.path / KEPT_CHECKPOINTS).glob("*-*")}
    if isinstance(run.path, Location):
        learned = run.matrix.tasks[: run.matrix.num_learned]
        names |= {f"{number:02d}-{task}" for number, task in enumerate(learned, 1)}
    return names
