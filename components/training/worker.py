"""What every Ray Train worker does: learn the stream's tasks one after another and score them after each.

One `fit()` is one stream. The loop is the same for every method; whatever differs between methods is behind its hooks.
Resume is Ray Train's own: the latest reported checkpoint holds the method, the optimizer, the stream state and
the matrix.
"""

from __future__ import annotations

import functools
import math
import time
from contextlib import ExitStack, nullcontext, suppress

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from components.core.errors import TrainingError
from components.core.events import Event, Note, StepDone, TaskStarted
from components.data.batch import IGNORE, Batch
from components.data.rows import instruction_of
from components.data.tasks import Task
from components.evaluation.matrix import MatrixRow
from components.methods.base import Method, MethodState, TaskInfo, copy_tensors, load_parameters
from components.models.backbone import Backbone, load_backbone
from components.models.encoding import Encoder
from components.training.checkpointing import StreamCheckpointer, StreamState, method_state
from components.training.dataloader import TaskDataLoader
from components.training.engine import DeepSpeedEngine, Engine, TorchEngine, mean_over_workers, trainable_parameters
from components.training.evaluate import RowScorer, SuiteScorer
from components.training.plan import WorkerPlan
from components.training.schedule import ScheduledTask
from components.training.stopping import StopRequested, stop_requested
from components.training.streaming import encoder_for
from components.training.task_cache import CachedTask


def train_stream(plan: WorkerPlan, loader: TaskDataLoader) -> None:
    """Learn and score the whole stream on this worker, or until the run is asked to stop."""
    with suppress(StopRequested):
        StreamWorker(plan, loader).run()


class StreamWorker:
    """The loop over tasks on one worker."""

    def __init__(self, plan: WorkerPlan, loader: TaskDataLoader) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.plan, self.config, self.stream, self.loader = plan, plan.config, plan.stream, loader
        torch.set_num_threads(self.config.cluster.threads())
        self.device = ray.train.torch.get_device()
        self.ready_since = time.monotonic()
        self.encoder: Encoder = encoder_for(self.config.backbone)
        model = load_backbone(self.config.backbone)
        self.checkpointer = StreamCheckpointer(plan, rank=self.rank, backbone=model.fingerprint)
        self.unfinished = self.checkpointer.latest()
        self.stream_state = StreamState() if self.unfinished is None else StreamState.of(self.unfinished)
        self._attach(model, None if self.unfinished is None else method_state(self.unfinished))
        if self.unfinished is not None:
            where = f"task {self.stream_state.index + 1} of {len(self.stream.tasks)}, update {self.stream_state.update}"
            self.send(Note(text=f"continuing at {where}"))
        self.task_start: MethodState | None = None
        self.trainable = 0  # parameters of the task that is or was being learned

    def _attach(self, model: Backbone, state: MethodState | None) -> None:
        """Put the method on a fresh backbone, as new or as `state` left it."""
        self.model: Backbone = model.to(self.device)
        torch.manual_seed(self.config.seed)
        self.method: Method = self.config.method.build(seed=self.config.seed)
        self.method.attach(self.model, state)
        self.model.to(self.device)
        self.method.prepare([text for scheduled in self.plan.schedule for text in scheduled_instructions(scheduled)])
        self.scorer = RowScorer(
            plan=self.plan,
            model=self.model,
            method=self.method,
            encoder=self.encoder,
            device=self.device,
            send=self.send,
        )
        self.suites = SuiteScorer(self.plan, self.scorer)

    # ---- the stream ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Learn and score every task that is still to do."""
        if self.stream_state == StreamState():  # nothing is learned yet
            if self.config.evaluation.zero_shot:
                self._score_row(train_s=0.0)
            self.suites.score(self.stream_state.rows, learned=0)
            self.ready_since = time.monotonic()
        while self.stream_state.index < len(self.stream.tasks):
            scheduled = self.plan.schedule[self.stream_state.index]
            if scheduled.scored:
                self._learn_and_score(scheduled)
            else:
                self.stream_state = StreamState(
                    index=self.stream_state.index + 1, rows=[*self.stream_state.rows, self._empty_row(scheduled)]
                )

    def _learn_and_score(self, scheduled: ScheduledTask) -> None:
        train_s, number = 0.0, self.stream_state.index + 1
        if not self.stream_state.learned:
            started = time.monotonic()
            self._learn_or_reuse(scheduled)
            train_s = time.monotonic() - started
            self.stream_state.learned = True
            self._save(f"{number:02d}-{scheduled.task.name}")
        self._score_row(train_s=train_s)
        self.suites.score(self.stream_state.rows, learned=number)
        self.ready_since = time.monotonic()
        self.stream_state = StreamState(index=number, rows=self.stream_state.rows)
        self._save(f"{number:02d}-{scheduled.task.name}-scored")

    def _learn_or_reuse(self, scheduled: ScheduledTask) -> None:
        """Learn the task, or take it over from a run that has learned just the same."""
        cached = self.plan.cached[self.stream_state.index] if self.plan.cached else None
        if cached is None:
            self._learn(scheduled)
            return
        with cached.lock() if self.rank == 0 else nullcontext():
            if self._agreed(cached.hit()):
                self._reuse(scheduled, cached)
                return
            self._learn(scheduled)
            state = self.method.state_dict(self.model)
            if self.rank == 0:
                kept = {"method_structure": state.structure, "trainable_parameters": self.trainable}
                cached.put(kept, {"method": state.tensors})

    def _reuse(self, scheduled: ScheduledTask, cached: CachedTask) -> None:
        stored = cached.read()
        trainable = stored.state["trainable_parameters"]
        assert isinstance(trainable, int)
        self.loader.forget_ahead()
        self._attach(load_backbone(self.config.backbone), method_state(stored))
        self.unfinished = None
        self.stream_state.update = scheduled.num_updates
        self._announce(scheduled, trainable)
        self.send(Note(text=f"task {scheduled.task.name} was learned by another run just so and is taken over"))

    def _agreed(self, hit: bool) -> bool:
        """What the first worker found: it alone looked in its turn."""
        if self.world_size == 1:
            return hit
        said = [hit]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def _empty_row(self, scheduled: ScheduledTask) -> MatrixRow:
        return MatrixRow(after=scheduled.task.name, scores=dict.fromkeys(self.stream.task_names))

    def _score_row(self, *, train_s: float) -> None:
        learned = self.stream_state.index + 1 if self.stream_state.learned else 0
        following = self.plan.schedule[learned : learned + 1]
        reused = any(cached is not None and cached.hit() for cached in self.plan.cached[learned : learned + 1])
        if following and following[0].num_updates and not reused:
            self.loader.read_ahead(following[0].task.name)  # so that the next task starts at once
        row = self.scorer.score(self.stream_state.rows, learned=learned, train_s=train_s)
        self.stream_state.rows = [*self.stream_state.rows, row]

    # ---- one task ------------------------------------------------------------------------------------------------

    def _learn(self, scheduled: ScheduledTask) -> None:
        training, task, num_updates = self.config.training, scheduled.task, scheduled.num_updates
        if not num_updates:
            self._announce(scheduled)
            return
        info = TaskInfo(index=len(self.method.tasks), name=task.name, instructions=scheduled_instructions(scheduled))
        self.task_start = self.method.state_dict(self.model)
        self.method.begin_task(self.model, info)
        self.model.to(self.device)
        if not trainable_parameters(self.model):
            raise TrainingError(f"method {self.config.method.name} left nothing to train for task {task.name}.")
        self._calibrate(scheduled, info)
        unfinished = self.unfinished.tensors if self.unfinished is not None and self.stream_state.update else None
        if unfinished is not None:  # what `begin_task` made anew gets its trained values back
            load_parameters(trainable_parameters(self.model), unfinished["trainable"])
            self.method.load_task_state(unfinished["in_task"])
        updates = self.loader.updates(task.name, first=self.stream_state.update)
        batches = next(updates)
        probe, before = batches[0], self._probe(batches[0])
        self._announce(scheduled)  # before the engine: ZeRO-3 leaves empty tensors in the parameters' place
        engine = self._build_engine()
        if unfinished is not None:
            engine.load_optimizer_state(unfinished["optimizer"])
        self.unfinished = None
        waited = 0.0
        while True:
            self._stop_if_requested(engine)
            self._update(engine, task, batches, num_updates, waited)
            if self.stream_state.update == num_updates:
                break
            if self.stream_state.update % training.checkpoint_every_updates == 0:
                self._save_unfinished(engine)
            waiting = time.monotonic()
            batches = next(updates)
            waited = time.monotonic() - waiting
        updates.close()
        engine.close()
        unchanged = torch.equal(before, self._probe(probe))
        self.method.end_task(engine, info, (batch.to(self.device) for batch in self.loader.once_more(task.name)))
        if unchanged:
            raise TrainingError(
                f"training on {task.name} changed no output of the model: the adapters of method "
                f"{self.config.method.name} have no effect; check training.optimizer.learning_rate."
            )

    def _stop_if_requested(self, engine: Engine) -> None:
        """Leave a checkpoint and the loop where the run's folder says so: the first worker looks, all agree."""
        hit = torch.tensor(float(self.rank == 0 and stop_requested(self.plan.run_dir)), device=self.device)
        if not float(engine.mean_over_workers({"stop": hit})["stop"]):
            return
        if self.stream_state.update:
            self._save_unfinished(engine)
        raise StopRequested

    def _calibrate(self, scheduled: ScheduledTask, info: TaskInfo) -> None:
        """Show the method the samples of as many first updates as it asks for; the same on any number of workers."""
        updates = math.ceil(self.config.method.calibration_share * scheduled.num_updates)
        batches = (batch.to(self.device) for batch in self.loader.first_updates(info.name, updates))
        self.method.calibrate(self.model, info, batches, mean_over_workers)

    def _update(self, engine: Engine, task: Task, batches: list[Batch], num_updates: int, waited: float) -> None:
        """One optimizer update. Each micro-batch weighs by its answer tokens, so the split over workers is neutral."""
        training, stream_state = self.config.training, self.stream_state
        started = time.monotonic()
        torch.manual_seed(_step_seed(self.config.seed, stream_state.index, stream_state.update, self.rank))
        engine.set_learning_rate(self.config.optimizer.rate_at(stream_state.update, num_updates))
        self.model.train()
        counts = [int((batch.labels[:, 1:] != IGNORE).sum()) for batch in batches]
        mean_count = float(engine.mean_over_workers({"n": torch.tensor(float(sum(counts)), device=self.device)})["n"])
        mean_count /= len(batches)
        totals: dict[str, Tensor] = {}
        stepped = False
        for batch, count in zip(batches, counts, strict=True):
            batch = batch.to(self.device)
            with ExitStack() as scope:
                enter = functools.partial(scope.enter_context, self.method.select(self.model, batch))
                outputs, selection = engine.forward(batch, enter)
                loss = self.method.loss(self.model, batch, outputs, selection)
                weight = count / mean_count
                engine.backward(loss.total * weight)
            for name, value in {"loss": loss.total, **loss.parts}.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.detach() * weight
            stepped = self.method.step(engine)
        if not stepped:
            raise TrainingError("an update ended without a step of the optimizer; this DeepSpeed is not known.")
        means = engine.mean_over_workers({name: value / len(batches) for name, value in totals.items()})
        stream_state.update += 1
        loss_value = float(means.pop("loss"))
        if not torch.isfinite(torch.tensor(loss_value)):
            raise TrainingError(
                f"the loss of task {task.name} became {loss_value} at update {stream_state.update}; lower "
                "training.optimizer.learning_rate or check the data."
            )
        elapsed = time.monotonic() - started + waited
        self.send(
            StepDone(
                index=stream_state.index,
                task=task.name,
                update=stream_state.update,
                num_updates=num_updates,
                global_update=stream_state.update
                + sum(scheduled.num_updates for scheduled in self.plan.schedule[: stream_state.index]),
                loss=loss_value,
                parts={name: float(value) for name, value in means.items()},
                learning_rate=self.config.optimizer.rate_at(stream_state.update - 1, num_updates),
                grad_norm=engine.grad_norm,
                samples_per_s=training.global_batch_size / elapsed,
                data_wait_s=waited,
            )
        )

    def _build_engine(self) -> Engine:
        training, rates = self.config.training, self.method.learning_rates()
        if training.engine == "torch":
            accumulation = training.accumulation(self.world_size)
            return TorchEngine(self.model, self.config.optimizer, rates=rates, accumulation=accumulation)
        return DeepSpeedEngine(
            self.model,
            self.config.optimizer,
            zero_stage=training.zero_stage,
            micro_batch_size=training.micro_size(self.world_size),
            accumulation=training.accumulation(self.world_size),
            rates=rates,
        )

    @torch.no_grad()
    def _probe(self, batch: Batch) -> Tensor:
        self.model.eval()
        batch = batch.to(self.device)
        with self.method.select(self.model, batch):
            return self.model(batch).logits.float().cpu()

    def _announce(self, scheduled: ScheduledTask, trainable: int | None = None) -> None:
        if trainable is None:
            trainable = sum(parameter.numel() for parameter in trainable_parameters(self.model).values())
        self.trainable = trainable
        self.send(
            TaskStarted(
                index=self.stream_state.index,
                task=scheduled.task.name,
                num_samples=scheduled.num_rows,
                num_updates=scheduled.num_updates,
                trainable_parameters=trainable,
                total_parameters=sum(p.numel() for p in self.model.parameters()),
                start_s=time.monotonic() - self.ready_since,
                resumed_at=self.stream_state.update,
            )
        )

    # ---- checkpoints and messages --------------------------------------------------------------------------------

    def _save(self, name: str) -> None:
        """Between tasks: report the method's whole memory; a learned task's is also kept for users."""
        state = self.method.state_dict(self.model)
        if self.stream_state.learned:
            self.checkpointer.keep(name, self.stream_state, state)
        self.checkpointer.report(self.stream_state, state)

    def _save_unfinished(self, engine: Engine) -> None:
        """Inside a task: its start, the trained values and the optimizer, all as plain tensors."""
        assert self.task_start is not None
        optimizer = engine.optimizer_state()
        with engine.full_parameters(trainable_parameters(self.model).values()):
            trainable = copy_tensors(trainable_parameters(self.model))
        unfinished = {"trainable": trainable, "in_task": self.method.task_state(), "optimizer": optimizer}
        self.checkpointer.report(self.stream_state, self.task_start, unfinished)

    def send(self, event: Event) -> None:
        """Tell the driver; only rank 0 speaks."""
        if self.rank == 0 and self.plan.event_queue is not None:
            self.plan.event_queue.put(event)


def scheduled_instructions(scheduled: ScheduledTask) -> list[str]:
    """First human turns of a scheduled task's training rows, in stored order, without decoding a picture."""
    return [instruction_of(str(text)) for split in scheduled.splits for text in split.column("conversations")]


def _step_seed(seed: int, task: int, update: int, rank: int) -> int:
    """Dropout's seed is a function of the step, so a checkpoint needs to carry no generator state."""
    return (((seed * 1_009 + task) * 1_000_003 + update) * 1_021 + rank) % (2**63)
