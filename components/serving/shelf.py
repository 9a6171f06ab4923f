"""Checkpoints of one storage, ready to answer, on one copy of the frozen weights.

A method cannot be taken off a backbone again, so each checkpoint has a backbone object of its own. Their frozen tensors
are the same ones in memory: another checkpoint costs what its method adds.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from components.core.errors import CheckpointError, ConfigError
from components.core.location import Location
from components.core.reading import is_plain_name
from components.exporting.bundle import attached
from components.exporting.learned import LearnedRun, read_learned
from components.methods.base import Method, MethodState
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.serving.plan import Place, Plan
from components.serving.schema import Wanted
from components.tracking.aliases import Registered


@dataclass(frozen=True, kw_only=True, eq=False)
class Version:
    """A checkpoint that can answer."""

    place: Place
    model: Backbone
    method: Method
    encoder: Encoder

    @property
    def tasks(self) -> list[str]:
        """Those learned, in order."""
        return self.method.tasks

    @property
    def needs_task(self) -> bool:
        """Whether a request must say which task it is of."""
        return self.method.config.needs_task_id


class Shelf:
    """Loads checkpoints. `backbone` is the configuration of the frozen weights, which all of them must share."""

    def __init__(self, storage: Path | Location, backbone: BackboneConfig, device: torch.device) -> None:
        self.storage, self.device = storage, device
        self.backbone = replace(backbone, gradient_checkpointing=False)

    @cached_property
    def base(self) -> Backbone:
        """The frozen weights without any method."""
        return load_backbone(self.backbone, self.device)

    def find(self, name: str, run: str) -> Place:
        """The checkpoint of `TASK` in `run`, or of `RUN/TASK`, in this storage; a task is a name or a number.

        Raises `ConfigError` or `CheckpointError` for what is not there or belongs to other weights.
        """
        given, slash, task = name.rpartition("/")
        return placed(self.learned(given if slash else run, task))

    def plan(self, run: str, wanted: Wanted) -> Plan:
        """The checkpoints that are wanted, those without a run's id of `run`; raises as `find` does."""
        canary, shadow = wanted.canary, wanted.shadow
        return Plan(
            primary=self.find(wanted.serve, run),
            canary=None if canary is None else self.find(canary, run),
            canary_share=0.0 if canary is None else wanted.canary_share,
            shadow=None if shadow is None else self.find(shadow, run),
            shadow_share=0.0 if shadow is None else wanted.shadow_share,
        )

    def registered(self, found: Registered) -> Place:
        """The checkpoint of a registered version, in this storage; raises as `find` does."""
        place = placed(self.learned(found.run, str(found.learned)))
        if place.task != found.task:
            raise ConfigError(f"{found} is another run than the one of this id in {self.storage}.")
        return place._replace(version=f"{found.name}/{found.version}")

    def newest(self, run: str) -> Place:
        """The checkpoint after the last task that `run` has learned."""
        return placed(self.learned(run, None))

    def learned(self, run: str, task: str | None) -> LearnedRun:
        """A run of this storage after one of its tasks."""
        if not is_plain_name(run):
            raise ConfigError(f"{run!r:.80} is no run's id; give TASK or RUN-ID/TASK, of a run in the served storage.")
        return read_learned(self.storage / run, task, self.backbone.name)

    def load(self, place: Place) -> Version:
        """The checkpoint, ready to answer; raises `CheckpointError` where it belongs to other frozen weights."""
        learned = self.learned(place.run, str(place.number))
        if learned.checkpoint.state.get("backbone") != self.base.fingerprint:
            raise CheckpointError(
                f"{place} belongs to other weights than those of backbone {self.backbone.name!r}, which is served; "
                "serve that run by itself, or say with --backbone where its weights are."
            )
        return replace(version_of(learned, self.base, self.backbone), place=place)


def placed(learned: LearnedRun) -> Place:
    """Where a run's checkpoint is."""
    return Place(learned.run.path.name, learned.number, learned.task)


def version_of(learned: LearnedRun, base: Backbone, backbone: BackboneConfig) -> Version:
    """The method of a run after one of its tasks, on the frozen tensors of `base`."""
    model = sharing(base)
    before = [parameter._version for parameter in base.parameters()]
    state = MethodState(tensors=learned.checkpoint.tensors["method"], structure={**learned.structure})
    method = attached(learned.config, model, state)
    if [parameter._version for parameter in base.parameters()] != before:
        raise CheckpointError(
            f"method {learned.config.method.name} changes frozen weights where they are, so no other checkpoint can be "
            "served beside it; serve an export of it (littoral export --to merged)."
        )
    config = replace(backbone, max_length=learned.config.backbone.max_length, too_long=learned.config.backbone.too_long)
    return Version(place=placed(learned), model=model, method=method, encoder=build_encoder(config))


def sharing(base: Backbone) -> Backbone:
    """A backbone of its own modules, for a method to put its adapters into, with the very tensors of `base`."""
    shared: dict[int, object] = {id(parameter): parameter for parameter in base.parameters()}
    shared[id(base.family)] = base.family  # tokenizer and image processor, which nobody changes
    return copy.deepcopy(base, shared)
