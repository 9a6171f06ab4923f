"""DISCO: a LoRA sub-space per task, activated by how near an instruction is to the task's mean instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from components.methods.common.prototypes import TEXT, PrototypeBranches
from components.methods.options.disco import DiscoConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone


class Disco(PrototypeBranches[DiscoConfig]):
    """DISCO (dynamic knowledge organisation and subspace selective activation), without its federated half.

    Paper: Guo et al. 2025, "Federated Continual Instruction Tuning", ICCV, arXiv 2503.12897. Code: Ghy0501/FCIT; a
        central version is among MCITlib's methods.
    Idea: every task has a LoRA sub-space of its own, kept apart from the others, and an identity token: the mean text
        feature of its samples. At test a sub-space weighs more the more a sample's text resembles its identity token.
    Objective: the language-model loss, through the current task's sub-space alone. At test, with T tasks,
            W = W0 + (alpha / R) sum_t w_t up_t down_t
            w = softmax(cos(text, Q_t) / temperature)     activation "softmax": no sub-space is left out
            w = one-hot at the largest cos(text, Q_t)     activation "nearest"
        with Q_t the identity token of task t.
    Overrides: weights; `PrototypeBranches` does the rest.
    Carried between tasks: every task's branch, frozen, and its identity token. Grows by one branch a task.
    Differs:
        - Central: one learner sees a task's whole data. Left out are the rounds of clients, the weighted averaging of
          their branches and projectors, and the server's matching of clients by identity token: there, updates whose
          tokens have a cosine above 0.9 go to one sub-space, also across tasks. That rule finds out which task a client
          works on. Here tasks are named, and each one opens a sub-space; so tasks that are worded alike share none.
        - The released code sums all sub-spaces with softmax weights at temperature 0.05, without any top-k: "softmax",
          the default. The same file holds a one-hot choice that is switched off: "nearest". The paper's own wording
          of the activation was not available.
        - The frozen sentence encoder of the other methods replaces CLIP's text tower, which reads 77 tokens at most.
        - prototype="unit" averages features of length 1; the released code averages them as they come ("raw").
        - Weights are per sample; the released code weighs by a batch's mean text and evaluates with batches of 1.
        - Branches of tasks to come take no part; in the released code an unused one has a cosine of 0 and takes weight
          unless it is cut off by the number of learned ones.
        - Branches sit on o_proj as in the other methods here (MCITlib: on all linear layers; FCIT: on the MLP,
          targets="mlp\\.(gate|up|down)_proj"), the projector stays frozen (there it is tuned), and the learning rate is
          LoRA's, 2e-3.
        - `routed_to` is the task with the largest w; with oracle routing a task is served as right after its training,
          bit for bit, so forgetting is zero then.
    ZeRO: all stages. Training uses one branch; prototypes are gathered on the plain model after the engine.
    """

    rows_leave = True

    def weights(self, model: Backbone, batch: Batch) -> Tensor:
        texts, _ = self.features(model, batch)[TEXT]
        likeness = self.cosines(TEXT, texts)
        if self.config.activation == "nearest":
            return F.one_hot(likeness.argmax(dim=1), likeness.shape[1]).float()
        return torch.softmax(likeness / self.config.temperature, dim=1)
