"""Taking a task out of a method's state: its tensors go, and what is numbered by task after it moves up by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from components.core.errors import ConfigError
from components.methods.base import Json, MethodState

GROUPS = r"(.*\.groups\.)(\d+)(\..*)"  # the names of a bank's parameters by group


def place_of(state: MethodState, task: str) -> tuple[int, int]:
    """0-based place of a learned task, and the number of learned tasks.

    Raises `ConfigError` for a task that is not learned, for the only one, and for a state inside a task.
    """
    tasks, begun = cast("list[str]", state.structure["tasks"]), state.structure.get("begun")
    if task not in tasks:
        raise ConfigError(f"task {task!r} is not learned; learned are {', '.join(tasks) or 'none'}.")
    if len(tasks) == 1:
        raise ConfigError(f"task {task!r} is the only one that is learned; without it nothing is left to keep.")
    if begun is not None and (len(begun) if isinstance(begun, list) else begun) != len(tasks):
        raise ConfigError("the state was taken inside a task; unlearn from one that was taken between tasks.")
    return tasks.index(task), len(tasks)


def renumbered(tensors: Mapping[str, Tensor], pattern: str, place: int) -> dict[str, Tensor]:
    """`tensors` without those numbered `place`, and with later numbers one lower.

    `pattern` matches whole names in three groups: what is before the number, the number, and the rest.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(pattern, name)
        if match is None:
            found[name] = tensor
        elif int(match[2]) != place:
            found[f"{match[1]}{int(match[2]) - (int(match[2]) > place)}{match[3]}"] = tensor
    return found


def without_rows(tensor: Tensor, place: int, count: int = 1) -> Tensor:
    """`tensor` without the `place`-th block of `count` rows."""
    return torch.cat([tensor[: place * count], tensor[(place + 1) * count :]])


def structure_without(state: MethodState, task: str) -> dict[str, Json]:
    """The structure with one learned task fewer."""
    tasks: list[Json] = [name for name in cast("list[str]", state.structure["tasks"]) if name != task]
    begun: dict[str, Json] = {"begun": len(tasks)} if "begun" in state.structure else {}
    return {**state.structure, "tasks": tasks, **begun}


def branch_forgotten(state: MethodState, task: str) -> MethodState:
    """The state of a method whose task i has the bank's group str(i), and nothing else, without one task."""
    place, _ = place_of(state, task)
    return MethodState(tensors=renumbered(state.tensors, GROUPS, place), structure=structure_without(state, task))
