"""SMoLoRA: two separately routed sets of LoRA blocks, one for what is seen and one for how to answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.adapters.separable import SeparableLayers, inject_separable
from components.data.batch import IGNORE
from components.methods.base import (
    Engine,
    Loss,
    MethodState,
    Selection,
    TaskInfo,
    load_parameters,
    target_pattern,
)
from components.methods.common.codebook import compared_text
from components.methods.common.features import ReadsInstructions
from components.methods.common.key_selection import evenly_spaced
from components.methods.options.smolora import SmoloraConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone, Outputs

PREPARED_TEXTS = 50_000  # embedded before the first task; half of what the encoder remembers


class Smolora(ReadsInstructions[SmoloraConfig]):
    """SMoLoRA, separable mixture of low-rank adaptation.

    Paper: Wang et al., ICCV 2025, "SMoLoRA: Exploring and Defying Dual Catastrophic Forgetting in Continual Visual
        Instruction Tuning", arXiv 2411.13949. This follows the released code (Minato-Zackie/SMoLoRA); of the paper only
        the abstract and second-hand summaries were available. The code's values for LLaVA-7B: all linear layers,
        expert_num 8 (4 + 4), lora_r 128 (16 each), alpha 256 (so scale 2), learning rate 1e-4, batch 64, dropout 0.05.
    Idea: forgetting what to see and forgetting how to answer are separate, so each gets blocks and a router of its own.
    Objective: the language-model loss of the task at hand. In every layer, with one block k(s) per sample and set s,
            h' = W0 h + sum_s a_s v_s,   v_s = (alpha / rank) up_k(s) down_k(s) h,   a = softmax_s (fusion_s . v_s)
            k(vu) = argmax R_vu z,  z = mean of the layer's own input over the sample's prompt
            k(if) = argmax R_if e,  e = sentence embedding of the instruction
        The choice is made once per sample and layer, the fusion once per token.
    Overrides: attach, prepare, begin_task, select, served, loss (logging), end_task, parameters.
    Carried between tasks: routers, blocks and fusion vectors. All tasks share them, so no block belongs to a task
        (`is_routed` is False). `Selection.slots` names both blocks of every layer: block k of layer l's set s is slot
        (2 l + s) K + k.
        Logged, in nats, as means over layers: `vu_usage_entropy` and `if_usage_entropy` of a batch's choices (0: all
        samples take the same block).
    Differs:
        - Top-1 in the code is a constant one-hot row: no gradient reaches the routers, so they keep their random draw
          (its flags make routers trainable in the first task, which suggests that training was intended).
          router="fixed" keeps the draw; "straight_through" is our own: the softmax's gradient in the first task, then
          frozen.
        - The code averages z over all positions, padding and, in training, answers too, so a sample's blocks depend
          on its neighbours, and each generated token chooses again, from itself. Here z is the mean over real tokens
          before the first answer, and generated tokens keep their prompt's blocks. A summary of the paper speaks of
          visual features: vu_reads="picture" takes the picture's positions (the prompt's where there is none).
        - The code embeds one hand-written instruction per task and knows the task, at test too. Here each sample's
          own instruction is embedded; in such streams its last line says how to answer, and what follows a colon
          there differs from row to row. Where the last line is the question itself, rows are routed by question,
          not by task, which is weaker than published. No task id is needed.
        - The code's scripts have weight decay 0.01 and dropout 0.05; here both are 0.
        - The projector stays frozen as in all our methods; the code trains it at 2e-5.
        - The learning rate is that of plain LoRA here, not tuned: a chosen block is a LoRA of scale 2.
    """

    rows_leave = True

    def __init__(self, config: SmoloraConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.layers: SeparableLayers

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        config = self.config
        self.layers = inject_separable(
            model,
            model.target_modules(target_pattern(config.targets)),
            blocks=config.blocks,
            rank=config.rank,
            scale=config.alpha / config.rank,
            dropout=config.dropout,
            embedding=self.encoder.dim,
            seed=self.seed,
        )
        if state is not None:
            self.restore(state)
            load_parameters(self.parameters(), state.tensors)
        self.layers.set_trainable(routers=False, rest=False)

    def prepare(self, instructions: Sequence[str]) -> None:
        texts = list(dict.fromkeys(self._field(text) for text in instructions))
        self.encoder.encode(evenly_spaced(texts, PREPARED_TEXTS))

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        learnable = self.config.router == "straight_through" and task.index == 0
        self.layers.set_trainable(routers=learnable, rest=True)

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        weights = averaging_weights(batch, model.family.image_token_id if self.config.vu_reads == "picture" else None)
        embedded = self.encoder.encode([self._field(text) for text in batch.instructions])
        with self.layers.inputs.using(weights, embedded.to(weights.device)), self.layers.record.recording():
            yield Selection()

    def served(self, selection: Selection) -> Selection:
        choices = self.layers.record.means()  # [L, B, 2, K]
        if choices is None:
            return selection
        blocks = choices.argmax(dim=-1).permute(1, 0, 2).flatten(1)  # [B, 2 L]
        first = torch.arange(blocks.shape[1], device=blocks.device) * self.config.blocks
        return Selection(slots=blocks + first)

    @property
    def num_slots(self) -> int:
        return 2 * self.config.blocks * len(self.layers.layers)

    def loss(self, model: Backbone, batch: Batch, outputs: Outputs, selection: Selection) -> Loss:
        choices = self.layers.record.take()  # [L, B, 2, K]
        if choices is None:  # a forward pass without gradients, outside training
            return Loss(total=outputs.loss)
        usage = torch.special.entr(choices.detach().mean(dim=1)).sum(dim=-1).mean(dim=0)
        return Loss(total=outputs.loss, parts={"vu_usage_entropy": usage[0], "if_usage_entropy": usage[1]})

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self.layers.set_trainable(routers=False, rest=False)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.layers.parameters()

    def _field(self, instruction: str) -> str:
        return compared_text(instruction, self.config.instruction_field)


def averaging_weights(batch: Batch, image_token_id: int | None) -> Tensor:
    """Weights [B, T] float32, rows sum to 1: evenly on the prompt's real tokens, or on the picture's where one is.

    The prompt ends where the first supervised token begins; a row that starts with one counts all its real tokens.
    """
    real = batch.attention_mask.bool()
    prompt = real & ((batch.labels != IGNORE).cumsum(dim=1) == 0)
    chosen = torch.where(prompt.any(dim=1, keepdim=True), prompt, real)
    if image_token_id is not None:
        picture = real & (batch.input_ids == image_token_id)
        chosen = torch.where(picture.any(dim=1, keepdim=True), picture, chosen)
    return chosen.float() / chosen.sum(dim=1, keepdim=True)
