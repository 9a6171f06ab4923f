"""A small job without Ray: LCIA learns two tasks of one group on pocket, under any engine and world size."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from engine_job import GLOBAL_BATCH, examples
from torch import Tensor
from worker_processes import results_of

from components.data.batch import IGNORE, Batch, collate
from components.methods.base import MethodState, TaskInfo, copy_tensors, load_parameters
from components.methods.common.balance import STATISTICS
from components.methods.common.balance_options import Rule, Start
from components.methods.lcia import Lcia, LciaConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.engine import DeepSpeedEngine, Engine, TorchEngine, mean_over_workers, trainable_parameters
from components.training.optimizer import OptimizerConfig

UPDATES = 4
# A large epsilon keeps Adam from turning rounding into whole steps; gradients are clipped in every update.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, epsilon=1e-3, max_grad_norm=0.1)


@dataclass(frozen=True, kw_only=True)
class LciaJob:
    """`stage` None is the plain torch engine. `interrupt_at`: a new process goes on with the second task there."""

    stage: int | None
    world_size: int = 1
    accumulation: int = 1
    interrupt_at: int | None = None
    balance: Rule = "official_code"
    start: Start = "task_start"

    @property
    def config(self) -> LciaConfig:
        return LciaConfig(rank=4, balance=self.balance, kappa=0.5, constant_weight=0.9, ema_start=self.start)


def outcomes_of(jobs: Collection[LciaJob]) -> dict[LciaJob, dict[str, Tensor]]:
    """By job and name: what every rank ended with (the ranks' bits must agree).

    `start/`, `live/`, `end/` + parameter: before the second task, at its last step, and after `end_task`;
    `statistics`: the balance after every update of the second task [updates, 4]; `loss`: of the ended model.
    """
    found: dict[LciaJob, dict[str, Tensor]] = {}
    for world_size in sorted({job.world_size for job in jobs}):
        chosen = [job for job in jobs if job.world_size == world_size]
        for job, (first, *others) in results_of(outcome, chosen, world_size=world_size).items():
            for other in others:
                assert all((other[name] == value).all() for name, value in first.items()), job
            found[job] = {name: torch.from_numpy(value) for name, value in first.items()}
    return found


def outcome(job: LciaJob, rank: int) -> dict[str, np.ndarray]:
    """One worker's part of `outcomes_of`."""
    return {name: value.numpy() for name, value in _Worker(job, rank).run().items()}


class _Worker:
    def __init__(self, job: LciaJob, rank: int) -> None:
        self.job, self.rank = job, rank
        self.micro = GLOBAL_BATCH // (job.world_size * job.accumulation)
        self.rows = examples()
        self.model, self.method = self._attached(None)
        self.statistics: list[list[float]] = []

    def run(self) -> dict[str, Tensor]:
        """Two tasks with the same instruction: the first is trained plainly, the second is averaged."""
        self._learn(0)
        assert self.method.average is None
        start = self.method.state_dict(self.model)
        live = self._learn(1, start)
        end = copy_tensors(self.method.parameters())
        everything = collate(self.rows, pad_id=0, padding_side="right")
        self.model.eval()
        with torch.no_grad(), self.method.select(self.model, everything):
            loss = self.model(everything).loss
        named = {"start": start.tensors, "live": live, "end": end}
        tensors = {f"{part}/{name}": value for part, values in named.items() for name, value in values.items()}
        return {**tensors, "statistics": torch.tensor(self.statistics, dtype=torch.float64), "loss": loss.reshape(1)}

    def _learn(self, index: int, start: MethodState | None = None) -> dict[str, Tensor]:
        """One task; the live values after its last step."""
        task = TaskInfo(index=index, name=f"task{index}", instructions=["Answer briefly."])
        self.method.begin_task(self.model, task)
        engine = self._engine()
        for update in range(UPDATES):
            if start is not None and update == self.job.interrupt_at:
                engine = self._resumed(engine, task, start)
            self._update(engine, update)
        live = {name: value.clone() for name, value in engine.parameters().items()}
        engine.close()
        self.method.end_task(engine, task, iter(()))
        return live

    def _update(self, engine: Engine, update: int) -> None:
        engine.set_learning_rate(OPTIMIZER.rate_at(update, UPDATES))
        self.model.train()
        batches = self._batches()
        counts = [int((batch.labels[:, 1:] != IGNORE).sum()) for batch in batches]
        total = float(mean_over_workers({"n": torch.tensor(float(sum(counts)))})["n"]) / len(batches)
        stepped = False
        for batch, count in zip(batches, counts, strict=True):
            with ExitStack() as scope:
                enter = functools.partial(scope.enter_context, self.method.select(self.model, batch))
                outputs, selection = engine.forward(batch, enter)
                loss = self.method.loss(self.model, batch, outputs, selection)
                engine.backward(loss.total * (count / total))
            if engine.at_boundary:
                norms = [float(gradient.norm()) for gradient in engine.gradients().values()]
                assert math.hypot(*norms) > 2 * OPTIMIZER.max_grad_norm, "nothing is clipped"
            stepped = self.method.step(engine)
        assert stepped
        if self.method.average is not None:
            found = self.method.average.statistics()
            if found:  # none of the step that the average is copied after
                self.statistics.append([float(found[name]) for name in STATISTICS])

    def _resumed(self, engine: Engine, task: TaskInfo, start: MethodState) -> Engine:
        """As the worker resumes in a new process: the start's state, `begin_task`, trained values, `task_state`."""
        moments, in_task = engine.optimizer_state(), self.method.task_state()
        with engine.full_parameters(trainable_parameters(self.model).values()):
            values = copy_tensors(trainable_parameters(self.model))
        engine.close()
        self.model, self.method = self._attached(start)
        self.method.begin_task(self.model, task)
        load_parameters(trainable_parameters(self.model), values)
        self.method.load_task_state(in_task)
        engine = self._engine()
        engine.load_optimizer_state(moments)
        return engine

    def _attached(self, state: MethodState | None) -> tuple[Backbone, Lcia]:
        model, method = load_backbone(BackboneConfig(name="pocket")), self.job.config.build(seed=0)
        method.attach(model, state)
        return model, method

    def _engine(self) -> Engine:
        job = self.job
        if job.stage is None:
            return TorchEngine(self.model, OPTIMIZER, accumulation=job.accumulation)
        return DeepSpeedEngine(
            self.model,
            OPTIMIZER,
            zero_stage=job.stage,  # type: ignore[arg-type]
            micro_batch_size=self.micro,
            accumulation=job.accumulation,
        )

    def _batches(self) -> list[Batch]:
        step = self.micro * self.job.world_size
        starts = range(self.rank * self.micro, GLOBAL_BATCH, step)
        return [collate(self.rows[start : start + self.micro], pad_id=0, padding_side="right") for start in starts]
