"""HiDe-LLaVA: one LoRA branch per task, mixed per sample in the last decoder layer and fused in all others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from components.adapters.fused import FusedPairs
from components.adapters.joined import Constant
from components.adapters.low_rank import BankedLinear, LowRankPairs
from components.adapters.mixing import Mixing, Scale
from components.methods.base import Engine, MethodState, Selection, TaskInfo
from components.methods.common.features import picture_features
from components.methods.common.prototypes import TEXT, PrototypeBranches
from components.methods.options.hide import HideConfig

if TYPE_CHECKING:
    from components.adapters.serving import Digests
    from components.data.batch import Batch
    from components.models.backbone import Backbone

IMAGE = "image"
FUSED = "fused"  # the group of fused factors in every layer


class Hide(PrototypeBranches[HideConfig]):
    """HiDe-LLaVA (hierarchical decoupling).

    Paper: Guo et al. 2025, "HiDe-LLaVA: Hierarchical Decoupling for Continual Instruction Tuning of Multimodal Large
        Language Model", ACL, arXiv 2503.12941. Code: Ghy0501/HiDe-LLaVA.
    Idea: tasks change the last decoder layer's features most, each in its own way, and the other layers' alike. So the
        last layer chooses among the tasks' LoRA branches by a sample's likeness to each task, and the other layers use
        one merged branch, the same for every sample.
    Objective: the language-model loss, through the current task's branch alone, in every layer. At test, with T tasks,
            last layer:   W = W0 + (alpha / R) sum_t w_t up_t down_t
                          w = softmax((cos(picture, P_t) + cos(text, Q_t)) / (2 temperature))
            other layers: W = W0 + (alpha / R) F
                          fusion "factors":  F = (sum_t up_t) (sum_t down_t)
                          fusion "sum":      F = sum_t up_t down_t
                          fusion "mean":     F = (1 / T) sum_t up_t down_t
        P_t and Q_t are the means of the pictures' and the instructions' features over the task's training samples.
    Overrides: attach, select (two scopes), served_by (before any task), weights, end_task, features of
        `PrototypeBranches`.
    Carried between tasks: every task's branch, frozen, and two prototypes a task.
    Differs:
        - How the other layers are fused: the authors' layer adds up the factors, each with coefficient 1, and
          multiplies the sums: "factors". It holds cross terms up_i down_j. A re-implementation (LAMDA-CL/Prism) adds
          whole increments: "sum". Summaries of the paper speak of uniform merging; its formula was not available, and
          "mean" is the reading as an average.
        - CLIP's two towers are replaced by what is there: the mean of the backbone's own frozen vision features, and
          the frozen sentence encoder of the other methods. Their cosines spread differently from CLIP's, so 0.1 may
          choose less sharply than in the paper.
        - A sample without a picture is weighed by its text alone: w = softmax(cos(text, Q_t) / temperature). A task
          without pictures has no P_t; its cosine with a sample that has one counts as 0.
        - prototype="unit" averages features of length 1; the released code averages CLIP's embeddings as they come
          ("raw"). It gathers them in the training steps, here it takes one more pass over the same samples.
        - Weights are per sample; the released code takes the largest cosine in a batch and evaluates with batches of 1.
        - The projector stays frozen (the released code tunes it), and branches sit on o_proj as in the other methods
          here (there: on every linear layer, targets="all_linear"), with the learning rate of LoRA, 2e-3.
        - `routed_to` is the task with the largest w. Oracle routing makes w one-hot in the last layer; the other layers
          stay fused and change with every task, so forgetting is not zero even then.
    ZeRO: all stages. Fused layers and prototypes are used only where the model is whole: training never reads them.
    """

    rows_leave = True

    def __init__(self, config: HideConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.general = Mixing()  # of all layers but the last; the bank's own is the last one's
        self.general_layers: list[BankedLinear] = []

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        super().attach(model, state)
        depth = {name: decoder_layer(name) for name in self.bank.layers}
        last = max(depth.values())
        self.general_layers = [layer for name, layer in self.bank.layers.items() if depth[name] < last]
        for layer in self.general_layers:
            layer.mixing = self.general
        self._fuse()

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        with self.general.using(*self._general_scales()), super().select(model, batch) as selection:
            yield selection

    def served_by(self, model: Backbone, batch: Batch, digests: Digests) -> str | None:
        return None if self.tasks else ""  # every task changes what is fused, and so every row

    def weights(self, model: Backbone, batch: Batch) -> Tensor:
        features = self.features(model, batch)
        text, (pictures, pictured) = self.cosines(TEXT, features[TEXT][0]), features[IMAGE]
        both = (text + self.cosines(IMAGE, pictures)) / 2
        likeness = torch.where(pictured.unsqueeze(1), both, text)
        return torch.softmax(likeness / self.config.temperature, dim=1)

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        self._fuse()

    def widths(self, model: Backbone) -> dict[str, int]:
        return {**super().widths(model), IMAGE: model.picture_width}

    def features(self, model: Backbone, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        pictures, pictured = picture_features(model, batch)
        return {**super().features(model, batch), IMAGE: (pictures.cpu(), pictured.cpu())}

    # What the hooks are made of.

    def _general_scales(self) -> tuple[dict[str, Scale], Constant | None]:
        """What serves in every layer but the last."""
        if self.current is not None:
            return {str(self.current.index): self.scale}, None
        if not self.tasks:
            return {}, None
        if self.config.fusion == "factors":
            return {FUSED: self.scale}, None
        share = 1.0 if self.config.fusion == "sum" else 1.0 / len(self.tasks)
        return {}, Constant.even(map(str, range(len(self.tasks))), self.scale * share)

    def _fuse(self) -> None:
        """Let the fused pairs of every layer consist of the learned tasks' branches."""
        if not self.tasks:
            return
        for layer in self.bank.layers.values():  # the last one too, unused: a bank's layers have the same groups
            members = [cast(LowRankPairs, layer.groups[str(index)]) for index in range(len(self.tasks))]
            layer.groups[FUSED] = FusedPairs(members)


def decoder_layer(name: str) -> int:
    """The decoder layer in a module's full name: model.language_model.layers.3.self_attn.o_proj -> 3."""
    found = re.search(r"\.(\d+)\.", name)
    assert found, f"{name} is not in a decoder layer"
    return int(found[1])
