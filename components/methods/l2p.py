"""L2P: a pool of soft prompts, found by keys and put in front of the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.adapters.low_rank import seeded_generator
from components.adapters.prompts import PromptPool, new_keys, random_words, rms, unit_words
from components.adapters.serving import Digests, served_by_tensors
from components.core.errors import CheckpointError
from components.methods.base import (
    Engine,
    Loss,
    MethodState,
    Selection,
    TaskInfo,
    copy_tensors,
    load_parameters,
)
from components.methods.common.features import ReadsInstructions
from components.methods.options.l2p import L2PConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

POOL = "l2p_pool"  # the pool's module in the model
COUNTS = "routing.counts"  # in the state: how often each prompt was chosen


class L2P(ReadsInstructions[L2PConfig]):
    """Learning to Prompt.

    Paper: Wang et al. 2022, "Learning to Prompt for Continual Learning", CVPR, arXiv 2112.08654; for image
        classification with a vision transformer (ViT).
    Idea: one pool of prompts for all tasks, each with a key. A frozen encoder turns the sample into a query q; the K
        prompts with the nearest keys are put in front of the embedded input. Tasks share prompts if their
        queries are similar; no task identity is used.
    Objective: L_lm([P_s1; ...; P_sK; x]) + lambda sum_k (1 - cos(q, key_sk)), averaged over the batch's answer tokens.
        diversify: training chooses the K smallest (1 - cos(q, key_i)) h_i, with h_i the share of prompt i in all
        choices of earlier tasks.
    Overrides: attach, begin_task, select, served_by, loss (pull), step and end_task (counts), task_state, state_dict.
    Carried between tasks: the pool, its keys, the counts. Nothing is frozen: later tasks overwrite prompts they share.
    Differs:
        - Published runs see every row 5 times; under this project's default budget of 60 updates none is seen twice,
          and prompts learn little. Give epochs for a fair figure.
        - The query is the frozen sentence encoder's embedding of the instruction, as in continual_llava, instead of
          the ViT's class token: an instruction names the task, and a decoder has no class token.
        - The prompts come before the first token of the row (chat template included), so that every token of a causal
          model sees them; the answer's tokens are read out, not the mean over the prompts. There is no classifier.
        - Chosen prompts are put in pool order: without positions among prompts a ViT sees a set, a decoder sees a
          sequence, and one set should be one sequence.
        - selection="batch" (the released code: the K prompts that most samples of the batch chose) applies to
          training only. At test it would let a sample's answer depend on its neighbours, and here it makes an update
          depend on the micro-batch size; hence "instance", the paper's formula, is the default.
        - h counts every prompt once more than it was chosen, so that unused prompts are still ordered by cosine.
        - The released code subtracts lambda sum cos: the same up to a constant. A sample's pull weighs by its answer
          tokens, as its language-model loss does; else the objective would depend on the cut into micro-batches.
        - Prompts count in units of the root mean square of the model's embeddings (0.14 in smol, 0.5 in pocket), so
          that one learning rate suits every model.
        - Keys start in +-0.01, not in (0, 0.01): short, but not all in one direction.
    """

    rows_leave = True

    def __init__(self, config: L2PConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.current: TaskInfo | None = None  # between begin_task and end_task
        self.pool: PromptPool
        self.earlier = torch.zeros(config.pool_size)  # choices in learned tasks, per worker
        self.counts = torch.zeros(config.pool_size)  # in the current task, up to the last update
        self.pending: list[Tensor] = []  # chosen ids since then
        self.distances: Tensor  # [B] of the batch in `select`: sum_k (1 - cos)

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        model.requires_grad_(False)
        config, generator = self.config, seeded_generator(self.seed, "pool")
        keys = new_keys((config.pool_size, self.encoder.dim), generator)
        size = (config.pool_size, config.prompt_length)
        embedding = model.language_model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        unit = rms(unit_words(embedding))
        if config.prompt_start == "words":
            prompts = random_words(embedding, size[0] * size[1], generator).unflatten(0, size) / unit
        else:
            prompts = torch.empty(*size, model.hidden_size).uniform_(0.0, 0.01, generator=generator)
        self.pool = PromptPool(keys=keys, prompts=prompts, unit=unit).to(model.device).requires_grad_(False)
        model.add_module(POOL, self.pool)
        if state is None:
            return
        self.restore(state)
        tensors = dict(state.tensors)
        counts = tensors.pop(COUNTS, None)
        if counts is None:
            raise CheckpointError("the checkpoint's state has no choice counts; it is damaged, start a new run.")
        self.earlier = counts.clone()
        load_parameters(self.parameters(), tensors)

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        self.pool.requires_grad_(True)
        self.counts, self.pending = torch.zeros_like(self.earlier), []
        self.current = task

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        if self.current is None and not self.tasks:  # zero-shot: the prompts have learned nothing yet
            yield Selection()
            return
        queries = self.encoder.encode(batch.instructions).to(model.device)
        cosines, chosen, prefix = self.pool(queries, self._choose)
        self.distances = (1.0 - cosines).sum(dim=1)
        with model.prefixed(prefix):
            yield Selection(slots=chosen)

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return served_by_tensors({} if model.prefix is None else {"prefix": model.prefix})

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        assert selection.slots is not None, "a task is trained with prompts"
        self.pending.append(selection.slots)
        distance = self.distances[outputs.rows].mean()  # over answer tokens, as the language-model loss
        return Loss(total=outputs.loss + self.config.pull * distance, parts={"key_distance": distance})

    def step(self, engine: Engine) -> bool:
        stepped = super().step(engine)
        if stepped:
            if self.config.diversify and not engine.skipped:  # every worker must hold the same counts
                chosen = torch.cat([ids.flatten() for ids in self.pending])
                counts = chosen.bincount(minlength=self.config.pool_size).float()
                self.counts += engine.mean_over_workers({"counts": counts})["counts"].cpu()
            self.pending = []
        return stepped

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.pool.requires_grad_(False)
        self.earlier = self.earlier + self.counts
        self.current = None

    def state_dict(self, model: Backbone) -> MethodState:
        return MethodState(
            tensors=copy_tensors({**self.parameters(), COUNTS: self.earlier}), structure=self.structure()
        )

    def task_state(self) -> dict[str, Tensor]:
        return {COUNTS: self.counts.clone()}

    def load_task_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.counts = tensors[COUNTS].cpu().clone()

    @property
    def num_slots(self) -> int:
        return self.config.pool_size

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{POOL}.{name}": parameter for name, parameter in self.pool.named_parameters()}

    def _choose(self, cosines: Tensor) -> Tensor:
        """Ids [B, K] in ascending order for cosines [B, N]."""
        scores, training = cosines, self.current is not None
        if training and self.config.diversify and self.tasks:
            shares = (self.earlier + 1.0) / (self.earlier + 1.0).sum()
            scores = (cosines - 1.0) * shares.to(cosines.device)
        chosen = scores.topk(self.config.top_k, dim=1).indices
        if training and self.config.selection == "batch":
            votes = chosen.flatten().bincount(minlength=self.config.pool_size)
            winners = votes.argsort(descending=True, stable=True)[: self.config.top_k]
            chosen = winners.expand(len(cosines), -1)
        return chosen.sort(dim=1).values
