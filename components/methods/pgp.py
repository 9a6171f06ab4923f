"""Gradient projection on one LoRA adapter: later tasks leave its answers to earlier tasks' inputs alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.adapters.low_rank import LowRankPairs
from components.adapters.projected import InputGrams, ProjectedPairs, grown_basis
from components.core.errors import CheckpointError, ConfigError
from components.methods.base import Engine, MethodState, TaskInfo, copy_tensors
from components.methods.common.passes import first_samples, input_grams
from components.methods.options.pgp import PgpConfig
from components.methods.sequential_lora import SequentialLora

if TYPE_CHECKING:
    from components.adapters.serving import Digests
    from components.data.batch import Batch
    from components.models.backbone import Backbone

DOWN, UP = "pgp.down.", "pgp.up."  # prefixes of the bases in the state, before a layer's name


class Pgp(SequentialLora[PgpConfig]):
    """Gradient projection (GPM, PGP) on one LoRA adapter.

    Paper: the rule is GPM's, Saha et al. 2021 (arXiv 2103.09762), code sahagobinda/GPM; PGP is its use on prompts, Qiao
        et al., "Prompt Gradient Projection for Continual Learning" (ICLR 2024), code JingyangQiao/
        prompt-gradient-projection. Both codes were read. Related, not read: the same authors' gradient projection for
        parameter-efficient tuning (arXiv 2405.13383).
    Idea: a linear layer answers old inputs as before if its weights change only orthogonally to them.
    Objective: the language-model loss, W = W0 + (alpha / R) up down, both factors seen as linear layers:
            down = start + (theta - start) (I - U U^T),   up = start + (theta - start) (I - V V^T)
        start: values at the task's start; theta: what is trained; U [d_in, k]: directions of earlier tasks' layer
        inputs x; V [R, l]: those of `down` x. After a task one pass gives C = sum x x^T per layer, and U gains the
        fewest directions with which it holds a share `energy` of trace C, those it had counted; V likewise from
        down C down^T. Each task sets the share anew for its own inputs.
    Guarantee: for old inputs inside span(U) it depends on the option `up`, what the up factor may do after task 1:
        "project" (default): as above. `down` x, and `up` of it, stay: so does every layer's increment. V has at most R
            directions; where it is full, `up` is frozen and the layer learns through `down` alone. GPM to the letter.
        "freeze": `up` stays as the first task left it. The same guarantee, also where V would be too small: the default
            lets up's answers to `down` x change outside span(V), a share 1 - energy.
        "free": only `down` x stays. The increment on old inputs changes as `up` does: no guarantee, most to learn with.
        It is exact at energy 1 with all samples seen (basis_samples 0), to float rounding and for inputs
        like those seen; below 1 the part outside U is free and so is its effect. At energy 0 nothing is held.
    Cost: a forward pass over `basis_samples` samples per task. Meanwhile d_in^2 float64 values per adapted layer, on
        every worker: 4.3 GB for o_proj of a 7B model; "all_linear" would take 57 GB. In later tasks a forward pass has
        2 k d_in multiplications per token and layer more, beside the layer's own d_in d_out; k grows with the tasks.
    Overrides: attach, begin_task, served_by (before any task), end_task, state_dict.
    Carried between tasks: the adapter, U and V per layer. Once they are full in every layer, the next task is refused.
    Differs:
        - The projection is part of the forward pass, where the papers project gradients and step SGD or Adam: Adam
          scales entry by entry and would leave the subspace. theta's gradient lies in the complement by itself.
        - GPM's code raises the threshold by 0.003 per task; here it is constant. For the first task the code stops one
          direction short of the threshold; here it is always reached.
        - PGP projects prompts by the spaces of inputs, prompts and keys, and its code takes shares of the squared
          energies, so its thresholds hold less than the same ones here. None of that carries over to LoRA.
        - Inputs are not centred, as in GPM: where a common mean dominates them, few directions reach the threshold.
        - A fresh branch per task with its rows orthogonal to U and `up` free would be exact as well (a growing
          adapter); it is not offered here.
        - The learning rate is sequential LoRA's, whose first task this is; no option was tuned.
    ZeRO: all stages, by construction. The projection is in the forward of the module that owns the factors; the bases
        are buffers, whole on every worker; inputs are gathered on the plain model after the engine.
    """

    def __init__(self, config: PgpConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.bases: dict[str, Tensor] = {}  # by prefix and layer, float32 on the CPU; empty before the first task's end
        self.pairs: dict[str, ProjectedPairs] = {}  # by layer

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        tensors = {} if state is None else dict(state.tensors)
        bases = {name: tensors.pop(name) for name in list(tensors) if name.startswith((DOWN, UP))}
        super().attach(model, None if state is None else MethodState(tensors=tensors, structure=state.structure))
        for name, layer in self.bank.layers.items():
            plain = layer.groups[self.GROUP]
            assert isinstance(plain, LowRankPairs)
            self.pairs[name] = layer.groups[self.GROUP] = ProjectedPairs(plain)
        expected = {key: len(basis) for key, basis in self._empty().items()} if self.tasks else {}
        if expected != {key: len(basis) for key, basis in bases.items()}:
            raise CheckpointError(
                f"the checkpoint's state holds {len(bases)} bases pgp.*, this backbone and method need {len(expected)} "
                "of the adapter's widths; use the backbone it was trained on."
            )
        self.bases = {name: basis.clone() for name, basis in bases.items()}

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        if not self.bases:
            return
        for name, pairs in self.pairs.items():
            down = self.bases[DOWN + name]
            up = self.bases.get(UP + name, down.new_zeros(pairs.rank, 0))
            pairs.protect(down, up)
            pairs.down.requires_grad_(down.shape[1] < len(down))
            pairs.up.requires_grad_(self.config.up != "freeze" and up.shape[1] < pairs.rank)
        if not any(parameter.requires_grad for parameter in self.parameters().values()):
            raise ConfigError(
                f"pgp holds all directions of every layer's inputs, nothing is left to learn task {task.name!r} with; "
                f"pgp.energy is {self.config.energy}, start a new run with less."
            )

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return None if self.tasks or any(bool(pairs.up.any()) for pairs in self.pairs.values()) else ""

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        assert engine is not None, "PGP trains every task"
        for pairs in self.pairs.values():
            pairs.settle()
        grams = self._input_grams(engine.model, batches)
        bases = self.bases or self._empty()
        for name, pairs in self.pairs.items():  # one layer at a time: Gram matrices are large
            gram = engine.mean_over_workers({name: grams.pop(name)})[name]
            if not gram.trace() > 0:
                raise ConfigError(f"pgp got no training batch of task {task.name!r} to take input directions from.")
            self.bases[DOWN + name] = grown_basis(bases[DOWN + name], gram, energy=self.config.energy)
            if self.config.up == "project":
                down = pairs.down.detach().double()
                self.bases[UP + name] = grown_basis(bases[UP + name], down @ gram @ down.T, energy=self.config.energy)

    def state_dict(self, model: Backbone) -> MethodState:
        """In mid-task the adapter is saved as its effective values. Training continues from there on the same path,
        because the rest of theta has no effect.
        """
        acting = {}
        for name, pairs in self.pairs.items():
            down, up = pairs.effective()
            prefix = f"{name}.groups.{self.GROUP}"
            acting |= {f"{prefix}.down": down, f"{prefix}.up": up}
        return MethodState(tensors=copy_tensors({**acting, **self.bases}), structure=self.structure())

    # What the hooks are made of.

    def _empty(self) -> dict[str, Tensor]:
        """Bases without directions."""
        empty = {DOWN + name: torch.zeros(pairs.down.shape[1], 0) for name, pairs in self.pairs.items()}
        if self.config.up == "project":
            empty |= {UP + name: torch.zeros(pairs.rank, 0) for name, pairs in self.pairs.items()}
        return empty

    def _input_grams(self, model: Backbone, batches: Iterable[Batch]) -> InputGrams:
        """Of this worker's first `basis_samples` samples (whole batches), padding left out."""
        return input_grams(self, model, self.bank, first_samples(batches, self.config.basis_samples))
