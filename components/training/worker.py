"""What every Ray Train worker does: learn the stream's tasks one after another and score them after each.

One `fit()` is one stream. The loop is the same for every method; whatever differs between methods is behind its hooks.
Resume is Ray Train's own: the latest reported checkpoint holds the method, the optimizer, the stream state and the rows
of the matrix so far.

All workers run the same steps in the same order, because many of them are collectives: forward passes and gathers under
ZeRO-3, means over workers, checkpoints. A worker that skipped one would leave the others waiting for ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode
from torch import Tensor

from components.core.errors import CheckpointError, TrainingError
from components.core.events import Event, Note, StepDone, TaskStarted
from components.data.batch import Batch
from components.data.instructions import Instructions
from components.evaluation.budget import verdict
from components.evaluation.matrix_rows import matrix_of
from components.methods.base import MethodState, TaskInfo, copy_tensors, load_parameters
from components.models.backbone import Backbone, load_backbone
from components.models.encoding import Encoder
from components.training.answering_again import answer_again, score_awaited
from components.training.attached import attached
from components.training.awaiting import AwaitedRows
from components.training.checkpointing import StreamCheckpointer, method_state
from components.training.dataloader import TaskDataLoader
from components.training.engine import Engine, build_engine, gathered, mean_over_workers, trainable_parameters
from components.training.evaluate import RowScorer
from components.training.kept_replies import KeptReplies
from components.training.plan import Again, WorkerPlan
from components.training.precision import set_float32_products
from components.training.ranks import Shares
from components.training.schedule import ScheduledTask
from components.training.step import require_finite_state, step_seed, take_step
from components.training.stopping import StopRequested, StopWatch
from components.training.stream_state import StreamState
from components.training.streaming import encoder_for
from components.training.suites import SuiteScorer
from components.training.task_cache import CachedTask, learned_by_a_twin
from components.training.transfer import sent_ahead
from components.training.update_log import UpdateLog
from components.training.watchdog import beat


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
        set_float32_products(self.config.backbone, self.device)
        self.stop = StopWatch(plan.run_dir)
        self.ready_since = time.monotonic()
        self.replies = KeptReplies(plan.run_dir, plan.shared, plan.config.evaluation)
        self.encoder: Encoder = encoder_for(self.config.backbone)
        model = load_backbone(self.config.backbone, self.device)
        # The backbone comes first: a checkpoint says which frozen weights it was made with, and others are refused
        # before anything of it is used.
        self.checkpointer = StreamCheckpointer(plan, rank=self.rank, backbone=model.fingerprint)
        self.unfinished = self.checkpointer.latest()
        self.stream_state = StreamState() if self.unfinished is None else StreamState.of(self.unfinished)
        self.attach(model, None if self.unfinished is None else method_state(self.unfinished))
        self.awaited = AwaitedRows(self) if plan.scorers else None
        if self.unfinished is not None:
            where = f"task {self.stream_state.index + 1} of {len(self.stream.steps)}, update {self.stream_state.update}"
            self.send(Note(text=f"continuing at {where}"))
        self.task_start: MethodState | None = None
        self.trainable = 0  # parameters of the task that is or was being learned

    def attach(self, model: Backbone, state: MethodState | None) -> None:
        """Put the method on a fresh backbone, as new or as `state` left it."""
        self.model, self.method = attached(self.plan, model, state, self.device)
        self.scorer = RowScorer(
            plan=self.plan,
            model=self.model,
            method=self.method,
            encoder=self.encoder,
            device=self.device,
            send=self.send,
            stop=self.stop,
            replies=self.replies,
            shares=Shares.of_worker(self.rank, self.world_size),
        )
        self.suites = SuiteScorer(self.plan, self.scorer)

    # ---- the stream ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Learn and score every task that is still to do."""
        if self.plan.again != Again() and self.unfinished is not None:
            answer_again(self, self.unfinished)
        if self.stream_state.awaited:
            self._take_up_awaited()
        if self.stream_state == StreamState():  # nothing is learned yet
            self._score(0, train_s=0.0)
            self.ready_since = time.monotonic()
        while self.stream_state.index < self.plan.num_tasks:
            scheduled = self.plan.schedule[self.stream_state.index]
            if scheduled.scored:
                self._learn_and_score(scheduled)
            else:
                self._move_on()
        if self.awaited is not None and not self.awaited.are_none:
            self.awaited.wait_for_all()
            self._save("")

    def _learn_and_score(self, scheduled: ScheduledTask) -> None:
        train_s, number = 0.0, self.stream_state.index + 1
        if not self.stream_state.learned:
            started = time.monotonic()
            self._learn_or_reuse(scheduled)
            train_s = time.monotonic() - started
            # Scoring may take longer than learning did. A run interrupted meanwhile continues from this checkpoint.
            self.stream_state.learned = True
            self._save(f"{number:02d}-{scheduled.task.name}")
        self._score(number, train_s=train_s)
        self.ready_since = time.monotonic()
        self._move_on()
        self._save(f"{number:02d}-{scheduled.task.name}-scored")
        if self.awaited is None:
            self.hold_to_budget()

    def _move_on(self) -> None:
        """To the next task; the row of this one is scored, or awaited, or empty because none is due."""
        rows, index = self.stream_state.rows, self.stream_state.index + 1
        if self.awaited is None or self.awaited.are_none:
            self.stream_state = StreamState(index=index, rows=self.plan.rows_before(rows, index + 1))
        else:  # empty rows behind awaited ones come with these
            self.stream_state = StreamState(index=index, rows=rows, awaited=self.stream_state.awaited + 1)

    def hold_to_budget(self) -> None:
        """Raise `StopRequested` on all ranks when the last row forbids another task; the driver says why."""
        matrix = matrix_of(self.stream.task_names, self.stream_state.rows, points=self.stream.points)
        found = verdict(matrix, self.config.evaluation.budget)
        if found is not None and found.exceeded:
            self.send(Note(text=found.text(), warning=True))
            if found.ends_the_stream:
                raise StopRequested

    def _learn_or_reuse(self, scheduled: ScheduledTask) -> None:
        """Learn the task, or reuse the checkpoint of an identical run of the same sweep."""
        cached = self.plan.cached[self.stream_state.index] if self.plan.cached else None
        if cached is None:
            self._learn(scheduled)
            return
        # The lock is held while the task is learned: an identical run that comes meanwhile waits for the checkpoint.
        with ExitStack() as held:
            if learned_by_a_twin(cached, held, rank=self.rank, stop=self.stop):
                self._reuse(scheduled, cached)
                return
            self._learn(scheduled)
            state = self.method.state_dict(self.model)
            require_finite_state(state, scheduled.task.name)
            if self.rank == 0:
                kept = {"method_structure": state.structure, "trainable_parameters": self.trainable}
                cached.put(kept, {"method": state.tensors})

    def _reuse(self, scheduled: ScheduledTask, cached: CachedTask) -> None:
        stored = cached.read()
        trainable = stored.state.get("trainable_parameters")
        if not isinstance(trainable, int):
            raise CheckpointError(f"{cached.folder} says nothing of trainable parameters; remove it to learn again.")
        self.loader.forget_ahead()
        # On a fresh backbone: what the method has attached so far cannot be taken off again.
        self.attach(load_backbone(self.config.backbone, self.device), method_state(stored))
        self.unfinished = None
        self.stream_state.update = scheduled.num_updates
        self._announce(scheduled, trainable)
        self.send(
            Note(text=f"task {scheduled.task.name} was already learned by an identical run; reusing its checkpoint")
        )

    def _score(self, learned: int, *, train_s: float) -> None:
        """Score the row after `learned` tasks and the suites that are due, or have them scored beside what follows."""
        if self.awaited is not None:
            self.awaited.hand_over(learned, train_s=train_s)
            return
        if learned or self.config.evaluation.zero_shot:
            self._score_row(learned, train_s=train_s)
        self.suites.score(self.stream_state.rows, learned=learned)

    def _take_up_awaited(self) -> None:
        """See to the rows that were awaited when the run was interrupted."""
        if self.awaited is not None:
            self.awaited.hand_over_again()
        else:
            assert self.unfinished is not None, "rows are awaited in a checkpoint only"
            score_awaited(self, self.unfinished)
            self.hold_to_budget()

    def _score_row(self, learned: int, *, train_s: float) -> None:
        following = self.plan.schedule[learned : learned + 1]
        reused = any(cached is not None and cached.hit() for cached in self.plan.cached[learned : learned + 1])
        if following and following[0].num_updates and not reused:
            self.loader.read_ahead(following[0].task.name)  # while this row is scored
        row = self.scorer.score(self.stream_state.rows, learned=learned, train_s=train_s)
        self.stream_state.rows = [*self.stream_state.rows, row]

    # ---- one task ------------------------------------------------------------------------------------------------

    def _learn(self, scheduled: ScheduledTask) -> None:
        """Learn one task, from its start or from inside it. The order of the steps matters; the comments say why."""
        task = scheduled.task
        if not scheduled.num_updates:
            self._announce(scheduled)
            return
        info = TaskInfo(index=len(self.method.tasks), name=task.name, instructions=Instructions(scheduled.splits))
        # Checkpoints inside the task hold the method as it is now, before the task, beside what was trained since. A
        # resumed worker builds the method from that and then goes through the same steps as a new one.
        self.task_start = self.method.state_dict(self.model)
        self.checkpointer.hold(self.task_start)
        self.method.begin_task(self.model, info)
        self.model.to(self.device)  # what the method has just added is still on the CPU
        if not trainable_parameters(self.model):
            raise TrainingError(f"method {self.config.method.name} left nothing to train for task {task.name}.")
        # Before the engine, because calibration runs the plain model, whose parameters ZeRO-3 would have partitioned.
        # Before trained values are restored, because it may set the values that training starts from.
        self._calibrate(scheduled, info)
        # Before the engine, whose optimizer copies the values that it finds.
        optimizer = self._restore_trained()
        updates = sent_ahead(self.loader.updates(task.name, first=self.stream_state.update), self.device)
        batches = next(updates)
        # After the trained values: whether training has an effect is judged from where this process starts. Before the
        # engine, on the plain model.
        probe, before = batches[0], self._probe(batches[0])
        self._announce(scheduled)  # counts parameters, and under ZeRO-3 the engine leaves empty ones in their place
        engine = build_engine(self.model, self.config, self.method.learning_rates(), self.world_size)
        if optimizer is not None:
            engine.load_optimizer_state(optimizer)
        self._train(engine, scheduled, batches, updates)
        # Ends the task's dataset, which `end_task` may start once more.
        updates.close()
        # Makes the parameters whole and plain again: the probe, `end_task` and every checkpoint read them.
        engine.close()
        # Before `end_task`, which may merge, move or reset what was trained.
        unchanged = torch.equal(before, self._probe(probe))
        self.method.end_task(engine, info, self._until_asked(self.loader.once_more(task.name)))
        # After `end_task`: only this worker's batch may be unchanged, and the others would wait for it in there.
        if unchanged:
            raise TrainingError(
                f"training on {task.name} changed no output of the model: the adapters of method "
                f"{self.config.method.name} have no effect; check training.optimizer.learning_rate."
            )

    def _restore_trained(self) -> dict[str, Tensor] | None:
        """Put back what an interrupted run had trained of this task. Its optimizer state, or None for a new task."""
        unfinished, self.unfinished = self.unfinished, None
        if unfinished is None or not self.stream_state.update:
            return None
        # In this order: see `Method.task_state`.
        load_parameters(trainable_parameters(self.model), unfinished.tensors["trainable"])
        self.method.load_task_state(unfinished.tensors["in_task"])
        return unfinished.tensors["optimizer"]

    def _train(
        self, engine: Engine, scheduled: ScheduledTask, batches: list[Batch], updates: Iterator[list[Batch]]
    ) -> None:
        """Make the task's remaining updates: the first with `batches`, the others with those of `updates`."""
        waited = 0.0
        log = UpdateLog(
            self.send,
            lambda: self.rank == 0 and self.stop.requested(),
            self.device,
            allowed=self.config.training.skip_bad_updates,
            skipped=self.stream_state.skipped,
            gathered=gathered,
        )
        while True:
            self._update(engine, scheduled, batches, waited, log)
            last = self.stream_state.update == scheduled.num_updates
            due = self.stream_state.update % self.config.training.checkpoint_every_updates == 0
            if last or due or log.stopping:
                log.flush(engine.mean_over_workers)
                self.stream_state.skipped = log.skipped
            if last:
                return  # without a checkpoint: one of the learned task follows
            if due or log.stopping:
                # A run that goes on does not wait for the copy into its storage; one that stops does.
                self._save_unfinished(engine, CheckpointUploadMode.SYNC if log.stopping else CheckpointUploadMode.ASYNC)
            if log.stopping:
                raise StopRequested
            waiting = time.monotonic()
            batches = next(updates)
            waited = time.monotonic() - waiting

    def _calibrate(self, scheduled: ScheduledTask, info: TaskInfo) -> None:
        """Show the method the samples of as many first updates as it asks for; the same on any number of workers."""
        updates = math.ceil(self.config.method.calibration_share * scheduled.num_updates)
        batches = self._until_asked(self.loader.first_updates(info.name, updates))
        self.method.calibrate(self.model, info, batches, mean_over_workers)

    def _until_asked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, on the device; all workers leave before one of them once the run is asked to stop.

        All workers must read equally many. Nothing is kept: a resumed run begins the pass anew.
        """
        for batch in batches:
            self.scorer.require_going_on()
            yield batch.to(self.device)

    def _update(
        self, engine: Engine, scheduled: ScheduledTask, batches: list[Batch], waited: float, log: UpdateLog
    ) -> None:
        """One optimizer update; `waited` are the seconds until its `batches` were there."""
        stream_state = self.stream_state
        started = time.monotonic()
        # Dropout depends on the step alone, so a resumed task draws what an uninterrupted one would have drawn.
        torch.manual_seed(step_seed(self.config.seed, stream_state.index, stream_state.update, self.rank))
        rate = self.config.optimizer.rate_at(stream_state.update, scheduled.num_updates)
        engine.set_learning_rate(rate)
        self.model.train()
        sums, means = take_step(engine, self.model, self.method, batches, self.device, log.to_average())
        log.read(means)  # the figures of the update before this one; on a GPU this one still computes
        stream_state.update += 1
        event = partial(
            StepDone,
            index=stream_state.index,
            task=scheduled.task.name,
            update=stream_state.update,
            num_updates=scheduled.num_updates,
            learning_rate=rate,
            samples_per_s=self.config.training.global_batch_size / (time.monotonic() - started + waited),
            data_wait_s=waited,
        )
        log.add(event, sums, engine.grad_norm, [row for batch in batches for row in batch.sample_ids])

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
        """Between tasks: report all that the method carries; after a learned task it is also kept for users."""
        state = self.method.state_dict(self.model)
        if self.stream_state.learned:
            # Updates with bad numbers were skipped, but what a method looks at in `end_task` can hold them as well.
            require_finite_state(state, self.stream.steps[self.stream_state.index])
            self.checkpointer.keep(name, self.stream_state, state)
        self.checkpointer.report(self.stream_state, state)

    def _save_unfinished(self, engine: Engine, mode: CheckpointUploadMode) -> None:
        """Inside a task: its start, the trained values and the optimizer, all as plain tensors."""
        assert self.task_start is not None
        # Both gather from all workers, so every worker comes here, although rank 0 alone writes.
        optimizer = engine.optimizer_state()
        with engine.full_parameters(trainable_parameters(self.model).values()):
            trainable = copy_tensors(trainable_parameters(self.model))
        unfinished = {"trainable": trainable, "in_task": self.method.task_state(), "optimizer": optimizer}
        self.checkpointer.report(self.stream_state, self.task_start, unfinished, mode=mode)

    def send(self, event: Event) -> None:
        """Send an event to the driver; only rank 0 does, but on every rank it is a sign of life."""
        beat()
        if self.rank == 0 and self.plan.event_queue is not None:
            self.plan.event_queue.put(event)
