"""Continual LLaVA: a pool of low-rank increments, chosen per instruction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.adapters.context import ContextScalars
from components.adapters.inject import inject_bank
from components.adapters.joined import Constant
from components.adapters.low_rank import Bank, seeded_generator
from components.adapters.mixing import Scales, scales_from_weights
from components.adapters.serving import Digests, served_by_bank
from components.core.errors import CheckpointError, ConfigError
from components.methods.base import (
    Engine,
    Forgotten,
    Json,
    Loss,
    MethodState,
    Selection,
    TaskInfo,
    target_pattern,
)
from components.methods.common.features import ReadsInstructions
from components.methods.common.growing import GrowingMethod
from components.methods.common.key_selection import Choice, evenly_spaced
from components.methods.common.slot_pool import SHARED, SlotPool, distinct
from components.methods.common.unlearning import GROUPS, place_of, renumbered, structure_without, without_rows
from components.methods.options.continual_llava import ContinualLlavaConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs
    from components.models.sentence import SentenceEncoder

CONTEXT = "continual_llava_context"  # the scalars' module in the model
SMALL_START = 0.05  # contextual_start = "small"
PREPARED_TEXTS = 50_000  # embedded before the first task; half of what the encoder remembers


class ContinualLlava(ReadsInstructions[ContinualLlavaConfig], GrowingMethod[ContinualLlavaConfig]):
    """Continual LLaVA.

    Paper: Cao et al. 2024, "Continual LLaVA: Continual Instruction Tuning in Large Vision-Language Models",
        arXiv 2411.02564. No code was released.
    Idea: a pool of slots, each a key and a low-rank increment P_n = up_n down_n of every attention output projection.
        A frozen sentence encoder turns the instruction into a query s; the M slots with the nearest keys serve it.
        Earlier tasks help through a weighted sum of what they selected on average.
    Objective: stage 1 (keys of the new task only, no LLM): minimise -mean cos(key, s) over the M nearest keys.
        Stage 2 (increments and scalars of the new task, keys frozen): the language-model loss with
            h' = W0 h + sum_m alpha_m P_m h + sum_m alpha_m sum_{l < t(m)} w[t(m), l] Zbar_l h
            alpha_m = cos_m / sum cos;  t(m) = the task that owns slot m;  Zbar_l = sum_n cbar[l, n] P_n
        with cbar[l, n] the mean weight of slot n over task l's instructions: increments are linear in their weights,
        so N numbers per task hold Zbar exactly, and one weights matrix [B, N] serves the whole bank.
    Overrides: attach, prepare, learning_rates, begin_task (stage 1), select, served_by, loss (counts only), end_task
        (cbar), state_dict, decisions, forget_task; `GrowingMethod` does the rest.
    Carried between tasks: keys, increments, cbar, scalars w; all of an earlier task's are frozen.
    Differs:
        - Factors are applied one after the other; traces of the authors' code build dense d x d increments.
        - Owned slots, per-instance selection and zero forgetting under an oracle follow from freezing what earlier
          tasks own; "shared" and "batch" keep the other readings. In a shared pool no task owns a slot, Zbar_l uses a
          frozen copy of the pool taken after task l, and the last task's scalars serve every sample.
        - The paper's sum may run to t; here l < t, since task t's own average is not known while it trains.
        - components="contextual" leaves the intrinsic part out of evaluation only: without it nothing would train.
        - Stage 1 makes at least `alignment_min_updates` updates: three short epochs of a small task barely move a key.
        - Cosines under 1e-4 are raised to it before the ratio, and counted; the paper's ratio has no guard.
        - The scalars have a rate of their own. With Adam a step moves a logit by about its rate, so 60 updates on the
          increments' 5e-4 would move it by 0.015 at most and w would be a constant; at 0.05 it can go 1.5 either way.
          Tried once on the pocket model, 60 updates, w from 0.5: 0.503 at 5e-4, 0.60 to 0.64 at 0.02, 0.70 to 0.80 at
          0.05, 0.94 to 0.99 at 0.3, where it saturates.
          Traces of the authors' code have one rate, 2e-5, for all: `contextual_learning_rate` None is that.
        - The second task's scalar starts at 0.95, not at 1 / 1: a sigmoid is 1 at infinity only.
        - The default encoder is MiniLM (384 dimensions, groups of 96), the paper's nli-roberta-base-v2 (768, 192). The
          increments' rate is 5e-4 with warm-up 0.03 and clipping at 1, the traces' 2e-5.
        - With selection="batch", cbar is recorded over batches of `alignment_batch_size`, not those of training.
    """

    rows_leave = rows_join = True
    MEMORY = "routing."

    def __init__(self, config: ContinualLlavaConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.pool = SlotPool(config.pool_options)
        self.groups: list[str] = []  # of the bank, in column order
        self.num_clamped = 0  # in the last batch
        self.bank: Bank
        self.context: ContextScalars

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The frozen query encoder, after checking that keys can be cut into `key_groups`."""
        encoder = super().encoder
        if encoder.dim % self.config.key_groups:
            raise ConfigError(
                f"continual_llava.key_groups is {self.config.key_groups}, which does not divide the "
                f"{encoder.dim} dimensions of {self.config.sentence_encoder!r}; give a divisor."
            )
        return encoder

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        self.bank = inject_bank(model, model.target_modules(target_pattern(self.config.targets)))
        self.context = ContextScalars(self.config.contextual_range)
        model.add_module(CONTEXT, self.context)
        super().attach(model, state)
        if state is not None:
            if self.memory.keys() != {"keys", "shares"}:
                raise CheckpointError("the checkpoint's state has no keys or shares; it is damaged, start a new run.")
            self.pool.keys, self.pool.shares = self.memory["keys"], self.memory["shares"]

    def prepare(self, instructions: Sequence[str]) -> None:
        self.encoder.encode(evenly_spaced(instructions, PREPARED_TEXTS))  # so that a new task starts at once

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        if not task.instructions:
            raise ConfigError(f"task {task.name!r} has no instructions to align keys with; give it training rows.")
        interrupted = self.begun > task.index  # resumed in mid-task: its keys are aligned already
        super().begin_task(model, task)
        if not interrupted:
            generator = seeded_generator(self.seed, "keys", str(task.index))
            self.pool.align(task.index, *self._queries(task), generator)

    def set_trainable(self, index: int) -> None:
        self.bank.set_trainable(self._trained_group(index), True)
        if self.config.contextual == "learned":
            self.context.set_trainable(index)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        names = [*self.tasks] if self.current is None else [*self.tasks, self.current.name]
        if not names:  # zero-shot: there is no slot yet
            with self.bank.mixing.using({}):
                yield Selection()
            return
        choice = self._route(batch, names)
        mass = self.pool.owner_mass(choice, len(names))
        scales, constant = self._mixed(choice, mass, num_tokens=batch.input_ids.numel())
        served = [names[index] for index in mass.argmax(dim=1).tolist()] if self.config.pool == "owned" else None
        with self.bank.mixing.using(scales, constant):
            yield Selection(slots=choice.slots, routed_to=served)

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return served_by_bank(self.bank, digests)

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        return Loss(total=outputs.loss, parts={"clamped_cosines": torch.tensor(float(self.num_clamped))})

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.pool.record_shares(task.index, *self._queries(task))

    def state_dict(self, model: Backbone) -> MethodState:
        self.memory = {"keys": self.pool.keys, "shares": self.pool.shares}
        return super().state_dict(model)

    def decisions(self) -> dict[str, dict[str, Json]]:
        """slots: the mean weight of each of the task's slots over its instructions, in order, and how many are used;
        w, w_moved: the scalar of each earlier task, and how far training moved it from its start.
        """
        found: dict[str, dict[str, Json]] = {}
        for index, task in enumerate(self.tasks):
            shares = self.pool.shares[index].tolist()
            found[task] = {"slots": [*shares], "slots_used": sum(share > 0 for share in shares)}
            scalars = self.context.scalars(index)
            if scalars is not None:
                start = self.context.reachable(self._start(index))
                w = dict(zip(self.tasks, scalars.tolist(), strict=False))
                moved = {name: value - start for name, value in w.items()}
                found[task] |= {"w": {**w}, "w_moved": {**moved}}
        return found

    def learning_rates(self) -> dict[str, float]:
        rate = self.config.contextual_learning_rate
        return {} if rate is None else {name: rate for name in self.parameters() if name.startswith(f"{CONTEXT}.")}

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        if self.config.pool == "shared":
            return super().forget_task(state, task)
        place, learned = place_of(state, task)
        if self.config.adds_context and place < learned - 1:
            raise ConfigError(
                f"continual_llava cannot unlearn task {task!r}: the tasks after it were trained on sums that add its "
                "slots, and without them they would answer otherwise; only its last task can be unlearned, or any "
                "one with method.contextual zero or method.components intrinsic."
            )
        # Only the last task has scalars where this point is reached with context, and no other task's name it.
        tensors = renumbered(renumbered(state.tensors, GROUPS, place), rf"({CONTEXT}\.task_)(\d+)()", place)
        keys, shares = f"{self.MEMORY}keys", f"{self.MEMORY}shares"
        tensors[keys] = without_rows(tensors[keys], place, self.config.slots_per_task)
        tensors[shares] = without_rows(tensors[shares], place)
        return Forgotten(state=MethodState(tensors=tensors, structure=structure_without(state, task)))

    @property
    def is_routed(self) -> bool:
        return self.config.pool == "owned"  # in a shared pool no slot belongs to a task

    @property
    def num_slots(self) -> int:
        return len(self.pool.keys)

    def parameters(self) -> dict[str, nn.Parameter]:
        context = {f"{CONTEXT}.{name}": value for name, value in self.context.named_parameters()}
        return {**self.bank.parameters(), **context}

    # What the hooks are made of.

    def grow(self, model: Backbone, index: int) -> None:
        """Append the task's bank groups and scalars."""
        config = self.config
        if config.pool == "owned" or index == 0:
            name, size = self._trained_group(index), self.pool.options.group_size
            init = "kaiming" if config.increment_init == "lora" else "paper"
            self.bank.add_group(name, num_pairs=size, rank=config.rank, init=init, seed=self.seed)
            self.groups.append(name)
        if not config.adds_context or index == 0:
            return
        if config.pool == "shared":
            self.bank.copy_group(SHARED, str(index - 1))
            self.groups.append(str(index - 1))
        device = next(iter(self.bank.layers.values())).weight.device
        self.context.add_task(index, start=self._start(index), device=device)

    def _start(self, index: int) -> float:
        """Where the scalars of task `index` start, before the range is enforced."""
        return 1.0 / index if self.config.contextual_start == "even" else SMALL_START

    def _trained_group(self, index: int) -> str:
        return str(index) if self.config.pool == "owned" else SHARED

    def _queries(self, task: TaskInfo) -> tuple[Tensor, Tensor]:
        """Embeddings of the task's distinct instructions, and the one each sample has."""
        texts, samples = distinct(evenly_spaced(task.instructions, self.config.alignment_samples))
        return self.encoder.encode(texts), samples

    def _route(self, batch: Batch, names: list[str]) -> Choice:
        """Only the current task's slots compete in training; all of them, or the oracle's, otherwise."""
        queries = self.encoder.encode(batch.instructions)
        if self.current is not None:
            allowed, rule = self.pool.competing(self.current.index), self.config.selection
        elif batch.oracle_task in names:
            allowed, rule = self.pool.competing(names.index(batch.oracle_task)), "instance"
        else:  # also for an oracle's task that is not learned yet and has no slots
            allowed, rule = slice(0, self.pool.competing(len(names) - 1).stop), "instance"
        choice = self.pool.route(queries, allowed=allowed, rule=rule)
        self.num_clamped = choice.num_clamped
        return choice

    def _mixed(self, choice: Choice, mass: Tensor, *, num_tokens: int) -> tuple[Scales, Constant | None]:
        """Weights of the bank's columns [B, K] as scales, with gradient to the current task's scalars, or as a constant
        where one task's frozen sum serves the whole batch.
        """
        size, owners = self.pool.options.group_size, mass.any(dim=0).nonzero().flatten().tolist()
        num_columns = len(self.groups) * size
        if self.current is None:  # tasks after all that serve the batch add nothing, and must not change its rounding
            mass = mass[:, : owners[-1] + 1]
        num_tasks = mass.shape[1]
        device = next(iter(self.bank.layers.values())).weight.device
        alpha = choice.spread(len(self.pool.keys))
        intrinsic = F.pad(alpha, (0, num_columns - alpha.shape[1]))
        chosen = intrinsic.any(dim=0)
        if self.config.components == "contextual" and self.current is None:
            intrinsic, chosen = torch.zeros_like(intrinsic), torch.zeros_like(chosen)
        if not self.config.adds_context or num_tasks == 1:
            return self._scales(intrinsic.to(device), chosen), None
        shares = self.pool.column_shares(num_tasks, num_tasks * size)
        context = F.pad(self.context(shares.to(device)), (0, num_columns - num_tasks * size))
        learns = self.current is not None and context.requires_grad
        shared = F.pad(shares.any(dim=0), (0, num_columns - num_tasks * size))
        if len(owners) == 1 and not learns:
            # The weights of one owner's slots sum to 1. In a task its batches are all like this one.
            tokens = None if self.current is not None else num_tokens
            constant = Constant.of_row(context[owners[0]].detach(), self.groups, tokens=tokens)
            return self._scales(intrinsic.to(device), chosen), constant
        contextual = mass.to(device) @ context
        if learns:  # in a task the two have no column in common: no gradient passes through the increments' weights
            return {**self._scales(contextual, shared), **self._scales(intrinsic.to(device), chosen)}, None
        return self._scales(intrinsic.to(device) + contextual, chosen | shared), None

    def _scales(self, weights: Tensor, used: Tensor) -> Scales:
        return scales_from_weights(weights, self.groups, rank=self.config.rank, used=used)
