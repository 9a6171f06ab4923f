"""KeepLoRA: a branch per task whose inputs are fixed to directions that neither W0 nor earlier tasks use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.adapters.projected import InputGrams, grown_basis, leading_directions
from components.adapters.weight_gradients import WeightGradients
from components.core.errors import CheckpointError, ConfigError
from components.methods.base import Engine, MeanOverWorkers, MethodState, Selection, TaskInfo
from components.methods.common.branches import TaskBranches
from components.methods.common.passes import first_samples, input_grams, without_dropout
from components.methods.options.keep_lora import KeepLoraConfig

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone

BASIS = "basis."  # prefix in `memory`, before a layer's name


class KeepLora(TaskBranches[KeepLoraConfig]):
    """KeepLoRA: learn in the residual space, where the pretrained weights and earlier tasks have little to lose.

    Paper: Luo et al. 2026, "KeepLoRA: Continual Learning with Residual Gradient Adaptation" (ICLR 2026); code
        MaolinLuo/KeepLoRA, and its port in Ghy0501/MCITlib. The codes were read; the paper's text was not available.
    Idea: what a layer knows lies in the main directions of its weights and of the inputs it was taught. A new branch
        that reads none of them disturbs neither; among the others, those of the task's own gradient teach most.
    Objective: the language-model loss, W = W0 + (alpha / R) sum_{i <= t} B_i A_i with B_t = up [d_out, R] alone in
        training, from zero, and A_t = down [R, d_in] frozen. Per layer, with a basis U [d_in, k] of protected inputs:
            at first            U = right singular vectors of W0 that hold a share `weight_energy` of |W0|^2
            before task t       G = d loss / d W0 over the calibration samples, at W without branch t
                                A_t = the R leading right singular vectors of G (I - U U^T), orthonormal rows
            after task t        U gains the fewest directions with which it holds `task_energy` of C, what it held
                                before counted; "inputs": C = sum x x^T over the layer's inputs x, "gradients":
                                C = G^T G of a second calibration, with branch t
        Then A_t U = 0: on inputs inside span(U) branch t adds exactly nothing. With "inputs" these are all but a share
        1 - task_energy of what earlier tasks' samples sent through the layer. A gradient's rows are sums of inputs, so
        "gradients" protects fewer: those that still matter to the loss once the task is learned.
    Cost: a calibration, repeated when the task is resumed, takes the forward and backward passes of `sample_share` of
        the task's training; the task's end takes as many forward passes ("gradients": and backward ones). Both need an
        eigendecomposition of [d_in, d_in] per layer. The first holds d_in d_out float32 values per adapted layer on
        every worker (o_proj of a 7B model: 2.1 GB), the second d_in^2 float64 values for C (4.3 GB, all layers at once;
        "gradients": one layer at a time). The state has U, 4 d_in k bytes per layer, and R (d_in + d_out) values per
        branch and layer.
    Overrides: attach, begin_task, calibrate, select (all branches serve), served_by, end_task, task_state,
        load_task_state.
    Carried between tasks: all branches, frozen, and U per layer. A layer whose inputs are all protected learns nothing
        more; once that holds for every layer, the next task is refused. A layer that has fewer than R directions left,
        or a gradient of lower rank, gets as many as there are, and zeros in the other rows of A.
    Differs:
        - The codes disagree on what is protected after a task: for CLIP the dominant directions of layer inputs, for
          LLaVA those of the gradient, G^T G. The first is the default here: it alone gives the guarantee above.
        - The LLaVA code merges a learned branch into the weights. Here it stays beside them, frozen: the same sum, and
          the backbone's bits never change.
        - It takes a fixed share of evenly spaced rows, one at a time, so all samples have the same weight in G. Here
          they are those of the first updates in shuffled order, and all answer tokens have the same weight, as in the
          loss.
        - Its first basis is one direction short of the threshold; here it is always reached. Its singular vectors of G
          come from a randomised solver; here they are exact.
        - It adapts all linear layers of the language model and trains the projector along; here o_proj alone by
          default, and no projector: a projector that moves changes every input that U protects.
        - The learning rate, 1e-3, is reasoned (see its line), not tuned; the codes' configurations for UCIT have 2e-4,
          for MLLM-DCL 2e-5, at ranks 32 and 64. KeepLoRA++ (arXiv 2606.16256) is not included.
    ZeRO: all stages. Calibration runs on the plain model, before the engine and after it; what trains is plain LoRA.
    """

    rows_leave = rows_join = True
    owned_by_none = "the bases that later branches keep clear of hold the directions of its inputs, mixed with others'"

    def __init__(self, config: KeepLoraConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.starts: dict[str, Tensor] = {}  # A by layer while a task is trained: ZeRO-3 empties the parameters
        self.calibrated = 0  # this worker's samples of the task's calibration

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        super().attach(model, state)
        widths = {f"{BASIS}{name}": layer.in_features for name, layer in self.bank.layers.items()} if self.begun else {}
        if widths != {key: len(basis) for key, basis in self.memory.items()}:
            raise CheckpointError(
                f"the checkpoint's state holds {len(self.memory)} bases of protected inputs, this backbone and method "
                f"need {len(widths)} of the layers' widths; use the backbone it was trained on."
            )

    def begin_task(self, model: Backbone, task: TaskInfo) -> None:
        super().begin_task(model, task)
        for name, parameter in self.bank.group_parameters(str(task.index)).items():
            parameter.requires_grad_(name.endswith(".up"))
        for name, layer in self.bank.layers.items():
            if f"{BASIS}{name}" not in self.memory:  # the first task
                weight = layer.weight.detach().double()
                self._protect(name, weight.T @ weight, energy=self.config.weight_energy)

    def calibrate(
        self, model: Backbone, task: TaskInfo, batches: Iterable[Batch], mean_over_workers: MeanOverWorkers
    ) -> None:
        gradients = self._gradients(model, batches, branches=task.index)
        strongest = 0.0
        for name in self.bank.layers:  # one layer at a time: these matrices are large
            gram = _row_gram(mean_over_workers({name: gradients.pop(name)})[name])
            rows = leading_directions(self.memory[f"{BASIS}{name}"], gram, count=self.config.rank).T
            self._start(name, rows, task.index)
            strongest = max(strongest, float(gram.trace()))
        if not strongest > 0:
            raise ConfigError(f"keep_lora got no training batch of task {task.name!r} to take its gradient from.")
        if not any(start.any() for start in self.starts.values()):
            raise ConfigError(
                f"keep_lora protects all input directions that the gradient of task {task.name!r} has in any layer, "
                f"nothing is left to learn it with; keep_lora.weight_energy is {self.config.weight_energy} and "
                f"task_energy {self.config.task_energy}, start a new run with less."
            )

    @contextmanager
    def select(self, model: Backbone, batch: Batch) -> Iterator[Selection]:
        with self.bank.mixing.using(*self.first_branches(self.begun)):
            yield Selection()

    served_by = TaskBranches.served_by  # the branches in force are all that serves

    def end_task(self, engine: Engine | None, task: TaskInfo, batches: Iterable[Batch]) -> None:
        super().end_task(engine, task, batches)
        assert engine is not None, "KeepLoRA trains every task"
        assert self.calibrated, "the training loop has not called `calibrate`"
        recorded = self._recorded(engine.model, first_samples(batches, self.calibrated))
        for name in self.bank.layers:
            found = engine.mean_over_workers({name: recorded.pop(name)})[name]
            gram = found if self.config.protects == "inputs" else _row_gram(found)
            self._protect(name, gram, energy=self.config.task_energy)
        self.starts, self.calibrated = {}, 0

    def task_state(self) -> dict[str, Tensor]:
        return dict(self.starts)

    def load_task_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Rounding differs with the number of workers, so the exact rows `up` was trained against are restored."""
        for name in self.bank.layers:
            self._start(name, tensors[name], len(self.tasks))

    # What the hooks are made of.

    def _gradients(self, model: Backbone, batches: Iterable[Batch], *, branches: int) -> WeightGradients:
        """G per layer, summed over this worker's answer tokens, with the first `branches` branches active."""
        gradients, self.calibrated = WeightGradients(self.bank.layers), 0
        with without_dropout(model, self.bank), self.bank.mixing.using(*self.first_branches(branches)):
            for batch in batches:
                with gradients.recording():
                    outputs = model(batch)
                (outputs.loss * outputs.total_weight).backward()
                self.calibrated += len(batch)
        return gradients

    def _recorded(self, model: Backbone, batches: Iterable[Batch]) -> InputGrams | WeightGradients:
        """The statistics of the learned model that decide what is protected from now on."""
        if self.config.protects == "inputs":
            return input_grams(self, model, self.bank, batches)
        return self._gradients(model, batches, branches=self.begun)

    def _protect(self, layer: str, gram: Tensor, *, energy: float) -> None:
        basis = self.memory.get(f"{BASIS}{layer}", torch.zeros(len(gram), 0))
        self.memory[f"{BASIS}{layer}"] = grown_basis(basis, gram, energy=energy)

    @torch.no_grad()
    def _start(self, layer: str, rows: Tensor, index: int) -> None:
        """Make `rows` [at most R, d_in] the first rows of A of task `index`, zeros the others."""
        down = self.bank.layers[layer].groups[str(index)].get_parameter("down")
        down.zero_()
        down[: len(rows)] = rows.to(down)
        self.starts[layer] = down.cpu().clone()


def _row_gram(gradient: Tensor) -> Tensor:
    """G^T G [d_in, d_in] float64 of `gradient` [d_out, d_in]."""
    wide = gradient.double()
    return wide.T @ wide
