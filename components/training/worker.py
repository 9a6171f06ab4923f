"""What every Ray Train worker does: learn the stream's tasks one after another and score them after each.

One `fit()` is one stream. The loop is the same for every method; whatever differs between methods is behind its hooks.
Resume is Ray Train's own: the latest reported checkpoint holds the method, the optimizer, the cursor and the matrix.
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

from components.core.errors import ConfigError
from components.core.events import Event, Note, StepDone, TaskStarted
from components.data.batch import IGNORE, Batch
from components.data.rows import instruction_of
from components.data.tasks import Task
from components.methods.base import Method, MethodState, TaskInfo, copy_tensors, load_parameters
from components.models.backbone import Backbone, load_backbone
from components.models.encoding import Encoder
from components.training.checkpointing import Cursor, Progress, method_state
from components.training.dataloader import Feed
from components.training.engine import DeepSpeedEngine, Engine, TorchEngine, mean_over_workers, trainable_parameters
from components.training.entry import WorkerPlan
from components.training.evaluate import Row, RowScorer
from components.training.schedule import Lesson
from components.training.stopping import StopAsked, asked_to_stop
from components.training.streaming import encoder_for
from components.training.suite_evaluation import SuiteScorer
from components.training.task_cache import SharedTask


def train_stream(plan: WorkerPlan, feed: Feed) -> None:
    """Learn and score the whole stream on this worker, or until the run is asked to stop."""
    with suppress(StopAsked):
        StreamWorker(plan, feed).run()


class StreamWorker:
    """The loop over tasks on one worker."""

    def __init__(self, plan: WorkerPlan, feed: Feed) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.plan, self.config, self.stream, self.feed = plan, plan.config, plan.stream, feed
        torch.set_num_threads(self.config.cluster.threads())
        self.device = ray.train.torch.get_device()
        self.ready_since = time.monotonic()
        self.encoder: Encoder = encoder_for(self.config.backbone)
        model = load_backbone(self.config.backbone)
        self.progress = Progress(plan, rank=self.rank, backbone=model.fingerprint)
        self.unfinished = self.progress.latest()
        self.cursor = Cursor() if self.unfinished is None else Cursor.of(self.unfinished)
        self._attach(model, None if self.unfinished is None else method_state(self.unfinished))
        if self.unfinished is not None:
            where = f"task {self.cursor.index + 1} of {len(self.stream.tasks)}, update {self.cursor.update}"
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
        self.method.prepare([text for lesson in self.plan.lessons for text in lesson_instructions(lesson)])
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
        if self.cursor == Cursor():  # nothing is learned yet
            if self.config.evaluation.zero_shot:
                self._score_row(train_s=0.0)
            self.suites.score(self.cursor.rows, learned=0)
            self.ready_since = time.monotonic()
        while self.cursor.index < len(self.stream.tasks):
            lesson = self.plan.lessons[self.cursor.index]
            if lesson.scored:
                self._learn_and_score(lesson)
            else:
                self.cursor = Cursor(index=self.cursor.index + 1, rows=[*self.cursor.rows, self._empty_row(lesson)])

    def _learn_and_score(self, lesson: Lesson) -> None:
        train_s, number = 0.0, self.cursor.index + 1
        if not self.cursor.learned:
            started = time.monotonic()
            self._learn_or_take_over(lesson)
            train_s = time.monotonic() - started
            self.cursor.learned = True
            self._save(f"{number:02d}-{lesson.task.name}")
        self._score_row(train_s=train_s)
        self.suites.score(self.cursor.rows, learned=number)
        self.ready_since = time.monotonic()
        self.cursor = Cursor(index=number, rows=self.cursor.rows)
        self._save(f"{number:02d}-{lesson.task.name}-scored")

    def _learn_or_take_over(self, lesson: Lesson) -> None:
        """Learn the task, or take it over from a run that has learned just the same."""
        place = self.plan.shared[self.cursor.index] if self.plan.shared else None
        if place is None:
            self._learn(lesson)
            return
        with place.turn() if self.rank == 0 else nullcontext():
            if self._agreed(place.found()):
                self._take_over(lesson, place)
                return
            self._learn(lesson)
            state = self.method.state_dict(self.model)
            if self.rank == 0:
                kept = {"method_structure": state.structure, "trainable_parameters": self.trainable}
                place.leave(kept, {"method": state.tensors})

    def _take_over(self, lesson: Lesson, place: SharedTask) -> None:
        stored = place.read()
        trainable = stored.state["trainable_parameters"]
        assert isinstance(trainable, int)
        self.feed.forget_ahead()
        self._attach(load_backbone(self.config.backbone), method_state(stored))
        self.unfinished = None
        self.cursor.update = lesson.num_updates
        self._announce(lesson, trainable)
        self.send(Note(text=f"task {lesson.task.name} was learned by another run just so and is taken over"))

    def _agreed(self, found: bool) -> bool:
        """What the first worker found: it alone looked in its turn."""
        if self.world_size == 1:
            return found
        said = [found]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def _empty_row(self, lesson: Lesson) -> Row:
        return Row(after=lesson.task.name, scores=dict.fromkeys(self.stream.task_names))

    def _score_row(self, *, train_s: float) -> None:
        learned = self.cursor.index + 1 if self.cursor.learned else 0
        following = self.plan.lessons[learned : learned + 1]
        taken_over = any(place is not None and place.found() for place in self.plan.shared[learned : learned + 1])
        if following and following[0].num_updates and not taken_over:
            self.feed.read_ahead(following[0].task.name)  # so that the next task starts at once
        row = self.scorer.score(self.cursor.rows, learned=learned, train_s=train_s)
        self.cursor.rows = [*self.cursor.rows, row]

    # ---- one task ------------------------------------------------------------------------------------------------

    def _learn(self, lesson: Lesson) -> None:
        training, task, num_updates = self.config.training, lesson.task, lesson.num_updates
        if not num_updates:
            self._announce(lesson)
            return
        info = TaskInfo(index=len(self.method.tasks), name=task.name, instructions=lesson_instructions(lesson))
        self.task_start = self.method.state_dict(self.model)
        self.method.begin_task(self.model, info)
        self.model.to(self.device)
        if not trainable_parameters(self.model):
            raise ConfigError(f"method {self.config.method.name} left nothing to train for task {task.name}.")
        self._survey(lesson, info)
        unfinished = self.unfinished.tensors if self.unfinished is not None and self.cursor.update else None
        if unfinished is not None:  # what `begin_task` made anew gets its trained values back
            load_parameters(trainable_parameters(self.model), unfinished["trainable"])
            self.method.load_task_state(unfinished["in_task"])
        updates = self.feed.updates(task.name, first=self.cursor.update)
        batches = next(updates)
        probe, before = batches[0], self._probe(batches[0])
        self._announce(lesson)  # before the engine: ZeRO-3 leaves empty tensors in the parameters' place
        engine = self._build_engine()
        if unfinished is not None:
            engine.load_optimizer_state(unfinished["optimizer"])
        self.unfinished = None
        waited = 0.0
        while True:
            self._stop_if_asked(engine)
            self._update(engine, task, batches, num_updates, waited)
            if self.cursor.update == num_updates:
                break
            if self.cursor.update % training.checkpoint_every_updates == 0:
                self._save_unfinished(engine)
            waiting = time.monotonic()
            batches = next(updates)
            waited = time.monotonic() - waiting
        updates.close()
        engine.close()
        unchanged = torch.equal(before, self._probe(probe))
        self.method.end_task(engine, info, (batch.to(self.device) for batch in self.feed.once_more(task.name)))
        if unchanged:
            raise ConfigError(
                f"training on {task.name} changed no output of the model: the adapters of method "
                f"{self.config.method.name} have no effect; check training.optimizer.learning_rate."
            )

    def _stop_if_asked(self, engine: Engine) -> None:
        """Leave a checkpoint and the loop where the run's folder says so: the first worker looks, all agree."""
        found = torch.tensor(float(self.rank == 0 and asked_to_stop(self.plan.run_dir)), device=self.device)
        if not float(engine.mean_over_workers({"stop": found})["stop"]):
            return
        if self.cursor.update:
            self._save_unfinished(engine)
        raise StopAsked

    def _survey(self, lesson: Lesson, info: TaskInfo) -> None:
        """Show the method the samples of as many first updates as it asks for; the same on any number of workers."""
        updates = math.ceil(self.config.method.survey_share * lesson.num_updates)
        batches = (batch.to(self.device) for batch in self.feed.first_updates(info.name, updates))
        self.method.survey(self.model, info, batches, mean_over_workers)

    def _update(self, engine: Engine, task: Task, batches: list[Batch], num_updates: int, waited: float) -> None:
        """One optimizer update. Each micro-batch weighs by its answer tokens, so the split over workers is neutral."""
        training, cursor = self.config.training, self.cursor
        started = time.monotonic()
        torch.manual_seed(_step_seed(self.config.seed, cursor.index, cursor.update, self.rank))
        engine.set_learning_rate(self.config.optimizer.rate_at(cursor.update, num_updates))
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
            raise ConfigError("an update ended without a step of the optimizer; this DeepSpeed is not known.")
        means = engine.mean_over_workers({name: value / len(batches) for name, value in totals.items()})
        cursor.update += 1
        loss_value = float(means.pop("loss"))
        if not torch.isfinite(torch.tensor(loss_value)):
            raise ConfigError(
                f"the loss of task {task.name} became {loss_value} at update {cursor.update}; lower "
                "training.optimizer.learning_rate or check the data."
            )
        elapsed = time.monotonic() - started + waited
        self.send(
            StepDone(
                index=cursor.index,
                task=task.name,
                update=cursor.update,
                num_updates=num_updates,
                global_update=cursor.update + sum(lesson.num_updates for lesson in self.plan.lessons[: cursor.index]),
                loss=loss_value,
                parts={name: float(value) for name, value in means.items()},
                learning_rate=self.config.optimizer.rate_at(cursor.update - 1, num_updates),
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

    def _announce(self, lesson: Lesson, trainable: int | None = None) -> None:
        if trainable is None:
            trainable = sum(parameter.numel() for parameter in trainable_parameters(self.model).values())
        self.trainable = trainable
        self.send(
            TaskStarted(
                index=self.cursor.index,
                task=lesson.task.name,
                num_samples=lesson.num_rows,
                num_updates=lesson.num_updates,
                trainable_parameters=trainable,
                total_parameters=sum(p.numel() for p in self.model.parameters()),
                start_s=time.monotonic() - self.ready_since,
                resumed_at=self.cursor.update,
            )
        )

    # ---- checkpoints and messages --------------------------------------------------------------------------------

    def _save(self, name: str) -> None:
        """Between tasks: report the method's whole memory; a learned task's is also kept for users."""
        state = self.method.state_dict(self.model)
        if self.cursor.learned:
            self.progress.keep(name, self.cursor, state)
        self.progress.report(self.cursor, state)

    def _save_unfinished(self, engine: Engine) -> None:
        """Inside a task: its start, the trained values and the optimizer, all as plain tensors."""
        assert self.task_start is not None
        optimizer = engine.optimizer_state()
        with engine.full_parameters(trainable_parameters(self.model).values()):
            trainable = copy_tensors(trainable_parameters(self.model))
        unfinished = {"trainable": trainable, "in_task": self.method.task_state(), "optimizer": optimizer}
        self.progress.report(self.cursor, self.task_start, unfinished)

    def send(self, event: Event) -> None:
        """Tell the driver; only rank 0 speaks."""
        if self.rank == 0 and self.plan.mailbox is not None:
            self.plan.mailbox.put(event)


def lesson_instructions(lesson: Lesson) -> list[str]:
    """First human turns of a lesson's training rows, in stored order, without decoding a picture."""
    return [instruction_of(str(text)) for split in lesson.splits for text in split.column("conversations")]


def _step_seed(seed: int, task: int, update: int, rank: int) -> int:
    """Dropout's seed is a function of the step, so a checkpoint needs to carry no generator state."""
    return (((seed * 1_009 + task) * 1_000_003 + update) * 1_021 + rank) % (2**63)
