"""DualPrompt: a key-value prefix for all tasks in early layers, and one per task in the layers after them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.adapters.low_rank import seeded_generator
from components.adapters.options import parse_layers
from components.adapters.prompts import (
    GeneralAndExpertPrefixes,
    PrefixedAttention,
    new_keys,
    random_words,
)
from components.adapters.serving import Digests, served_by_tensors
from components.core.errors import ConfigError
from components.methods.base import Forgotten, Loss, MethodState, Selection
from components.methods.common.features import ReadsInstructions
from components.methods.common.growing import GrowingMethod
from components.methods.common.unlearning import place_of, renumbered, structure_without
from components.methods.options.dual_prompt import DualPromptConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

PREFIXES = "dual_prompt_prefixes"  # their module in the model


class DualPrompt(ReadsInstructions[DualPromptConfig], GrowingMethod[DualPromptConfig]):
    """DualPrompt.

    Paper: Wang et al. 2022, "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning", ECCV, arXiv
        2204.04799; for image classification with a vision transformer (ViT).
    Idea: prefix tuning, twice. A general prefix g in the first layers is shared and trained by every task; an expert
        prefix e_t in the layers after them belongs to task t, with a key k_t. While task t is trained, e_t serves;
        at test the expert whose key is nearest to the sample's query does.
    Objective: L_lm with g, e_t + lambda (1 - cos(q, k_t)). A prefix is pairs (p_K, p_V) per layer:
        attention(Q, [p_K; K], [p_V; V]).
    Overrides: attach, select, served_by, loss (pull), forget_task; `GrowingMethod` does the rest.
    Carried between tasks: g, every e_t and k_t; those of earlier tasks are frozen. Forgetting: g drifts, queries err.
    Differs:
        - Published runs see every row 5 to 50 times; under this project's default budget of 60 updates none is seen
          twice, and prompts learn little. Give epochs for a fair figure.
        - The query is the frozen sentence encoder's embedding of the instruction, as in continual_llava, instead of
          the ViT's class token: an instruction names the task, and a decoder has no class token.
        - p_K and p_V have L pairs each, as in the released code; the paper cuts a prompt of length L in two halves.
        - prefix_space: in the paper's formula p_K and p_V pass the layer's projections ("hidden"), in the released
          code they join after them ("projected", the default: as many numbers as the heads read, no work per token).
        - A decoder has positions and a causal mask: every token sees the prefix, tokens keep their positions, and
          p_K is not rotated, so every token sees it at position 0.
        - Only the prefix form is offered; the paper's other form, prompts in front of a layer's input, did worse there.
        - Learned numbers count in units of the layer's own keys and values (see PrefixedAttention), so that one
          learning rate suits every layer and model; it is a rate for numbers near 1.
        - Layers are counted as in the paper. A language model is two or three times as deep: move them by option.
        - Keys start in +-0.01, not in (0, 0.01): short, but not all in one direction.
        - A sample's pull weighs by its answer tokens, as its language-model loss does; else the objective would depend
          on the cut into micro-batches.
    """

    rows_leave = True

    def __init__(self, config: DualPromptConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.general_layers, self.expert_layers = (
            parse_layers(config.general_layers),
            parse_layers(config.expert_layers),
        )
        self.prefixes: GeneralAndExpertPrefixes
        self.attention: PrefixedAttention
        self.distances: Tensor  # [B] of the batch in `select`: 1 - cos of the current task's key

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        model.requires_grad_(False)
        layers, depth = [*self.general_layers, *self.expert_layers], model.language_model.config.num_hidden_layers
        if max(layers) >= depth:
            raise ConfigError(
                f"dual_prompt.general_layers {self.config.general_layers} and expert_layers "
                f"{self.config.expert_layers} need {max(layers) + 1} layers, the language model has {depth}."
            )
        self.attention = PrefixedAttention(model.language_model, layers, self.config.prefix_space)
        general = self._new_prefix(model, self.general_layers, self.config.general_length, "general")
        self.prefixes = GeneralAndExpertPrefixes(general)
        model.add_module(PREFIXES, self.prefixes)
        super().attach(model, state)

    def set_trainable(self, index: int) -> None:
        self.prefixes.set_trainable(index)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        names = [*self.tasks] if self.current is None else [*self.tasks, self.current.name]
        if not names:  # zero-shot: there is no expert yet
            yield Selection()
            return
        known = self.current.name if self.current is not None else batch.oracle_task

        def choose(cosines: Tensor) -> Tensor:
            return torch.full_like(cosines[:, 0], names.index(known)).long() if known in names else cosines.argmax(1)

        queries = self.encoder.encode(batch.instructions).to(model.device)
        cosines, chosen, general, expert = self.prefixes(queries, len(names), choose)
        self.distances = 1.0 - cosines[:, -1]
        prefixes = {index: general[:, row] for row, index in enumerate(self.general_layers)}
        prefixes |= {index: expert[:, row] for row, index in enumerate(self.expert_layers)}
        with self.attention.using(prefixes):
            yield Selection(slots=chosen.unsqueeze(1), routed_to=[names[index] for index in chosen.tolist()])

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return served_by_tensors(self.attention.tensors())

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        distance = self.distances[outputs.rows].mean()  # over answer tokens, as the language-model loss
        return Loss(total=outputs.loss + self.config.pull * distance, parts={"key_distance": distance})

    def forget_task(self, state: MethodState, task: str) -> Forgotten:
        place, learned = place_of(state, task)
        tensors = renumbered(state.tensors, rf"({PREFIXES}\.(?:key|expert)_)(\d+)()", place)
        left = "the general prefix was trained by this task too"
        if place < learned - 1 and self.config.expert_start == "previous":
            left += ", and the expert after it started as its copy"
        return Forgotten(state=MethodState(tensors=tensors, structure=structure_without(state, task)), traces=left)

    @property
    def num_slots(self) -> int:
        return self.begun

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{PREFIXES}.{name}": parameter for name, parameter in self.prefixes.named_parameters()}

    def grow(self, model: Backbone, index: int) -> None:
        if index and self.config.expert_start == "previous":
            expert = self.prefixes.get_parameter(f"expert_{index - 1}").detach().clone()
        else:
            expert = self._new_prefix(model, self.expert_layers, self.config.expert_length, f"expert {index}")
        key = new_keys((self.encoder.dim,), seeded_generator(self.seed, "key", str(index))).to(model.device)
        self.prefixes.add_task(index, key=key, expert=expert)

    def _new_prefix(self, model: Backbone, layers: range, length: int, label: str) -> Tensor:
        """[S, 2, L, W] on the model's device."""
        generator = seeded_generator(self.seed, label)
        if self.config.prefix_start == "uniform":
            prefix = torch.empty(len(layers), 2, length, self.attention.width)
            return prefix.uniform_(0.0, 0.01, generator=generator).to(model.device)
        embedding = model.language_model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        words = random_words(embedding, len(layers) * 2 * length, generator).view(len(layers), 2, length, -1)
        return torch.stack([self.attention.words(index, words[row]) for row, index in enumerate(layers)])
