"""CODA-Prompt: a key-value prefix mixed of components by attention to the instruction; components grow with tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.adapters.low_rank import seeded_generator
from components.adapters.options import parse_layers
from components.adapters.prompts import (
    PrefixedAttention,
    PromptComponents,
    orthonormal_rows,
)
from components.adapters.serving import Digests, served_by_tensors
from components.core.errors import ConfigError
from components.methods.base import Forgotten, Loss, MethodState, Selection
from components.methods.common.features import ReadsInstructions
from components.methods.common.growing import GrowingMethod
from components.methods.common.unlearning import place_of, renumbered, structure_without
from components.methods.options.coda_prompt import CodaPromptConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

COMPONENTS = "coda_prompt_components"  # their module in the model


class CodaPrompt(ReadsInstructions[CodaPromptConfig], GrowingMethod[CodaPromptConfig]):
    """CODA-Prompt.

    Paper: Smith et al. 2023, "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual
        Learning", CVPR, arXiv 2211.13218; for image classification with a vision transformer (ViT).
    Idea: a sample's prefix is not chosen but mixed: p = sum_m w_m P_m over all components, w_m = cos(q * A_m, K_m)
        with an attention vector A_m that says which features of the query q matter to component m. Every task adds M
        components; those of earlier tasks are frozen but take part. The choice is trained with the rest, by the same
        loss. Each layer has its own components; a half of p is its keys, the other its values.
    Objective: L_lm with attention(Q, [p_K; K], [p_V; V]) + lambda (|P P^T - I| + |K K^T - I| + |A A^T - I|), the rows
        of P, K, A being all components' prompts, keys and attention vectors, summed over layers.
    Overrides: attach, select, served_by, loss (orthogonality), forget_task; `GrowingMethod` does the rest.
    Carried between tasks: all components; those of earlier tasks are frozen. Forgetting: new components also join the
        prefix of an earlier task's samples, unless their queries are orthogonal to the new keys.
    Differs:
        - The query is the frozen sentence encoder's embedding of the instruction, as in continual_llava, instead of
          the ViT's class token: an instruction names the task, and a decoder has no class token.
        - The number of tasks need not be known: M components a task, instead of a pool divided by the task count.
        - New components are drawn orthonormal and orthogonal to the earlier ones, as later versions of the released
          code do, while the dimensions have room for all; after that they are orthonormal among themselves.
        - lambda is 0.1 in the paper and its measure written as the norm |.|_2 (Frobenius here). The released code takes
          the mean squared entry ("mean_square", the default), its first version a millionth of that ("first_release"),
          and its commands have lambda = 0 since components start orthogonal: the default, which makes the measure
          idle. Under the norm, prompts cannot grow beyond length 1, which leaves a language model nearly unmoved.
        - Published runs see every row 20 to 50 times; under this project's default budget of 60 updates none is seen
          twice, and prompts learn little.
        - prefix_space: in the paper's formula p_K and p_V pass the layer's projections ("hidden"), in the released
          code they join after them ("projected", the default: as many numbers as the heads read, no work per token).
        - A decoder has positions and a causal mask: every token sees the prefix, tokens keep their positions, and
          p_K is not rotated, so every token sees it at position 0.
        - Learned prompts count in units of the layer's own keys and values (see PrefixedAttention).
        - All components serve every sample, so nothing is routed and there is no oracle.
    """

    rows_leave = True

    def __init__(self, config: CodaPromptConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.layers = parse_layers(config.layers)
        self.components: PromptComponents
        self.attention: PrefixedAttention
        self.distance: Tensor  # of the components in `select` from orthonormal ones

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        model.requires_grad_(False)
        depth = model.language_model.config.num_hidden_layers
        if self.layers[-1] >= depth:
            raise ConfigError(
                f"coda_prompt.layers {self.config.layers} needs {self.layers[-1] + 1} layers, the language model has "
                f"{depth}."
            )
        if self.config.components_per_task > self.encoder.dim:
            raise ConfigError(
                f"coda_prompt.components_per_task is {self.config.components_per_task}; give at most "
                f"{self.encoder.dim}, the dimensions of {self.config.sentence_encoder!r}."
            )
        self.attention = PrefixedAttention(model.language_model, self.layers, self.config.prefix_space)
        self.components = PromptComponents()
        model.add_module(COMPONENTS, self.components)
        super().attach(model, state)

    def set_trainable(self, index: int) -> None:
        self.components.set_trainable(index)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        num_tasks = len(self.tasks) + (self.current is not None)
        if not num_tasks:  # zero-shot: there is no component yet
            yield Selection()
            return
        queries = self.encoder.encode(batch.instructions).to(model.device)
        _, prompts, self.distance = self.components(queries, num_tasks, self.config.penalty)
        pairs = prompts.unflatten(2, (2, -1))  # [S, B, 2, L / 2, W]: keys are the first half
        with self.attention.using({index: pairs[row] for row, index in enumerate(self.layers)}):
            yield Selection()

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return served_by_tensors(self.attention.tensors())

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        total = outputs.loss + self.config.orthogonality * self.distance
        return Loss(total=total, parts={"gram_distance": self.distance})

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        place, learned = place_of(state, task)
        tensors = renumbered(state.tensors, rf"({COMPONENTS}\.\w+_)(\d+)()", place)
        alone = place == learned - 1
        left = "" if alone else "later components were drawn apart from these, and trained while these served"
        return Forgotten(state=MethodState(tensors=tensors, structure=structure_without(state, task)), traces=left)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{COMPONENTS}.{name}": parameter for name, parameter in self.components.named_parameters()}

    def grow(self, model: Backbone, index: int) -> None:
        count, length = self.config.components_per_task, self.config.prompt_length
        sizes = {"keys": self.encoder.dim, "attention": self.encoder.dim, "prompts": length * self.attention.width}
        drawn: dict[str, Tensor] = {}
        for part, size in sizes.items():
            rows = []
            for place in range(len(self.layers)):
                old = self.components.part(part, index)[place].flatten(1) if index else torch.empty(0, size)
                rows.append(orthonormal_rows(count, old, seeded_generator(self.seed, part, str(index), str(place))))
            drawn[part] = torch.stack(rows).to(model.device)
        drawn["prompts"] = drawn["prompts"].unflatten(2, (length, -1))
        self.components.add_task(index, **drawn)
