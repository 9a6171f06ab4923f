"""Evaluation inside a run: one row of the score matrix over the tasks that are due.

All ranks answer together; rank 0 scores, writes the files and tells the driver.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from components.adapters.serving import Digests
from components.core.errors import DataError
from components.core.events import EvaluationProgress, Event, RowScored
from components.data.batch import Example
from components.data.instructions import Instructions
from components.data.rows import Row
from components.data.suite import Suite
from components.data.tasks import Task
from components.evaluation.choosing import Choosings, question_of
from components.evaluation.generation import Answer, answer
from components.evaluation.manifest import note_digests
from components.evaluation.matrix_rows import VARIANTS, MatrixRow
from components.evaluation.predictions import (
    Prediction,
    by_task,
    logged_samples,
    mean_score,
    predictions_file,
    shares,
    slot_usage,
)
from components.methods.base import Method
from components.metrics import score
from components.metrics.answer_format import FormRepair, form_of, obeys
from components.metrics.captions import MEAN
from components.metrics.released.suites import suite_score
from components.metrics.released.tasks import compat_row_score, compat_task_figures
from components.training.budget import judged_row
from components.training.engine import mean_over_workers
from components.training.kept_cells import KeptCells, state_digest
from components.training.kept_replies import KeptReplies, Tally, earlier_row
from components.training.ranks import Shares, of_rank_0
from components.training.row_files import captions_file, served_by, write_captions, write_decisions, write_matrix
from components.training.stopping import StopRequested, StopWatch
from components.training.streaming import (
    WINDOW_ROWS,
    dataset_name,
    encoded_blocks,
    examples,
    fits_a_window,
    prompt_windows,
    prompts_here,
)
from components.training.windows import Slice

if TYPE_CHECKING:
    from components.models.backbone import Backbone
    from components.models.encoding import Encoder
    from components.training.plan import WorkerPlan


class RowScorer:
    """Scores rows on all workers together: each rank answers its stride of the rows, rank 0 scores and writes.

    A process of its own may answer all strides, one after another: it gives the same replies.
    """

    def __init__(
        self,
        *,
        plan: WorkerPlan,
        model: Backbone,
        method: Method,
        encoder: Encoder,
        device: torch.device,
        send: Callable[[Event], None],
        stop: StopWatch,
        replies: KeptReplies,
        shares: Shares,
    ) -> None:
        self.plan, self.model, self.method = plan, model, method
        self.encoder, self.device, self.send, self.stop = encoder, device, send, stop
        self.replies, self.shares = replies, shares
        self.arithmetic = model.arithmetic()
        self.tally = Tally()
        self.choosings = Choosings(plan.config.evaluation.replies, encoder)
        self.state, self.digests = "", Digests()  # of the method as it is while one row is scored
        self.rank, self.world_size = shares.rank, shares.world_size
        self.helped: Mapping[str, int] = {}  # by task of one row, replies that were kept where others answered it

    def score(self, rows: list[MatrixRow], *, learned: int, train_s: float, again: bool = False) -> MatrixRow:
        """Evaluate the row after `learned` tasks (0 = zero-shot) and return it; rank 0 also writes and announces it.

        `again`: the row is known, and only its predictions are written.
        """
        started = time.monotonic()
        stream, after = self.plan.stream, self.plan.after(learned)
        due = self.plan.due(learned)
        self.model.eval()
        cells, self.tally = self.kept_cells(learned, after), Tally()
        table = self.cells(cells, due, learned)
        cells.tell(self.send, len(due), apart=self.helped)
        self.tally.tell(self.send, after)
        tables = by_task(table)
        means = {
            column: {name: mean_score(tables.get(name, ()), column) for name in stream.task_names}
            for column in ("score", *VARIANTS.values())
        }
        variants = {
            variant: means[column]
            for variant, column in VARIANTS.items()
            if any(score is not None for score in means[column].values())
        }
        captions = self._captions(table)
        if whole := {task: found[MEAN] for task, found in captions.items() if MEAN in found}:
            variants["compat"] = {**variants.get("compat", dict.fromkeys(stream.task_names)), **whole}
        row = MatrixRow(
            after=after,
            scores=means["score"],
            variants=variants,
            served=served_by(table, self.method.owner) if learned else {},
        )
        if self.rank == 0:
            written = [predictions_file(self.plan.run_dir, learned, after)]
            if captions:
                written.append(captions_file(self.plan.run_dir, learned, after))
                write_captions(written[-1], captions)
            cells.join(table)
            note_digests(self.plan.run_dir, written)
            if not again:
                self._record(row, [*rows, row], table, learned=learned, train_s=train_s, started=started)
        return row

    def cells(self, cells: KeptCells, tasks: Sequence[Task], learned: int) -> list[Prediction]:
        """The predictions of these tasks after `learned` ones, each cell kept as soon as it is whole."""
        evaluation, after, table = self.plan.config.evaluation, self.plan.after(learned), list[Prediction]()
        for task in tasks:
            oracle = task.name if evaluation.oracle_routing and self.method.is_routed and learned else None
            rows_due = min(task.test.num_rows, evaluation.limit or task.test.num_rows)
            table += self.cell(cells, task, after, num_rows=rows_due, oracle_task=oracle)
        return table

    def kept_cells(self, learned: int, after: str) -> KeptCells:
        """What an earlier start of the run has scored after so many tasks. All ranks must call it."""
        # On all ranks, because a method may gather its state from all of them.
        state = self.method.state_dict(self.model)
        self.state, self.digests = state_digest(state), Digests()
        return KeptCells(self.plan.run_dir, learned, after, state=f"{self.model.fingerprint} {self.state}")

    def cell(
        self, cells: KeptCells, task: Task | Suite, after: str, *, num_rows: int, oracle_task: str | None = None
    ) -> list[Prediction]:
        """`predictions`, kept as soon as they are whole, or those that were kept. All ranks must call it."""
        found = cells.take(task, num_rows, oracle_task) if self.rank == 0 else None
        if of_rank_0(found is not None):
            self.replies.read_again()
            self.tally.kept += self.helped.get(task.name, sum(one.answered_in is not None for one in found or []))
            return found or []
        scored = self.predictions(task, after, num_rows=num_rows, oracle_task=oracle_task)
        if self.rank == 0:
            cells.put(task, oracle_task, scored)
        return scored

    def predictions(
        self, task: Task | Suite, after: str, *, num_rows: int, oracle_task: str | None = None
    ) -> list[Prediction]:
        """Scored predictions of a task's or suite's first rows; empty on all ranks but 0. All ranks must call it.

        A suite belongs to no task: a method routes its rows as it would route any other. Raises `StopRequested` on all
        ranks when the run was asked to stop meanwhile; a resumed run then answers this task's rows again.
        """
        config = self.plan.config
        answers: list[Answer] = []
        unaided = self.replies.unaided(task, num_rows, self.arithmetic, self.shares.of)
        reuse = self.replies.reuse(task, unaided, self.arithmetic, self.state, self.digests)
        # A rank that stops answering does not leave at once: the others would wait for its answers for ever.
        with suppress(StopRequested), self.method.test_file(Instructions([task.test])):
            for window in (each for part in self.shares.own for each in self._windows(task, num_rows, part)):
                answers += answer(
                    self.model,
                    self.method,
                    self.encoder,
                    window,
                    batch_size=config.evaluation.batch_size,
                    batch_tokens=config.evaluation.batch_tokens,
                    max_new_tokens=task.max_new_tokens,
                    device=self.device,
                    known_task=task.name if config.method.needs_task_id else None,
                    oracle_task=oracle_task,
                    progress=self._progress(after, task.name, before=len(answers), total=num_rows),
                    reuse=reuse,
                    choosing=self.choosings.of(task.test, num_rows),
                    refill=config.evaluation.refill,
                )
        self.require_going_on()
        self.replies.answered(task.name, answers, after)
        gathered = self._gather(answers)
        self.tally.add(gathered)
        if self.rank == 0 and unaided is not None:
            unaided.add(gathered, str(config.run_id), after)
        return self._scored(task, after, gathered, num_rows) if self.rank == 0 else []

    def _progress(self, after: str, task: str, *, before: int, total: int) -> Callable[[int], None]:
        def send(done: int) -> None:
            seen = min((before + done) * self.world_size, total)  # the other ranks are about as far
            self.send(EvaluationProgress(after=after, task=task, done=seen, total=total))
            if self.stop.requested():
                raise StopRequested

        return send

    def require_going_on(self) -> None:
        """Raise `StopRequested` on all ranks if one of them has seen that the run was asked to stop."""
        seen = torch.full((), float(self.stop.requested()), device=self.device)
        if mean_over_workers({"asked to stop": seen})["asked to stop"].item() > 0.0:
            raise StopRequested

    def _windows(self, task: Task | Suite, num_rows: int, part: int) -> Iterator[list[Example]]:
        own, backbone = Slice(rank=part, world_size=self.shares.of), self.plan.config.backbone
        if self.shares.beside:  # datasets are the workers'
            yield from prompt_windows(task.test, backbone, slice=own, num_rows=num_rows, cache=self.plan.cache)
            return
        if fits_a_window(num_rows, self.shares.of):
            yield prompts_here(task.test, backbone, slice=own, num_rows=num_rows, cache=self.plan.cache)
            return
        name = dataset_name("suite" if isinstance(task, Suite) else "test", task.name, self.rank)
        for block in encoded_blocks(name, batch_size=WINDOW_ROWS):
            yield list(examples(block.to_pylist()))

    def _gather(self, answers: list[Answer]) -> list[Answer]:
        if self.world_size == 1:
            return answers
        parts: list[list[Answer]] | None = [[] for _ in range(self.world_size)] if self.rank == 0 else None
        dist.gather_object(answers, parts)
        return [item for part in parts or [] for item in part]

    def _scored(self, task: Task | Suite, after: str, answers: list[Answer], num_rows: int) -> list[Prediction]:
        replies = {item.sample_id: item for item in answers}
        scripted = all(item.options is None for item in answers)  # releases score whole tasks, and choose no option
        repair = FormRepair.of(row.answers for row in task.test.rows(with_image=False))
        found: list[Prediction] = []
        for row in task.test.rows(with_image=False, limit=num_rows):
            reply = replies.pop(row.sample_id, None)
            if reply is None:
                raise DataError(f"test row {row.sample_id} of {task.name} was not answered; scores would be wrong.")
            oracle, asked = reply.oracle_text, question_of(row)
            generated = reply.options is None
            found.append(
                Prediction(
                    after=after,
                    task=task.name,
                    sample_id=row.sample_id,
                    prompt=row.instruction,
                    prediction=reply.text,
                    answers=row.answers,
                    score=score(row.metric, reply.text, row.answers, asked),
                    metric=row.metric,
                    well_formed=obeys(form_of(row.metric, row.answers), reply.text, row.answers),
                    repaired_score=repair.score(row.metric, asked, reply.text, row.answers),
                    compat_score=self._compat(task, row, reply.text) if scripted else None,
                    routed_to=reply.routed_to,
                    slots=reply.slots,
                    matched=reply.matched,
                    reply_key=reply.key,
                    oracle_reply_key=reply.oracle_key,
                    answered_in=earlier_row(reply, after),
                    oracle_prediction=oracle,
                    oracle_score=None if oracle is None else score(row.metric, oracle, row.answers, asked),
                    chosen_by=None if generated else self.plan.config.evaluation.replies,
                    options=reply.options,
                    log_likelihoods=reply.log_likelihoods,
                    oracle_log_likelihoods=reply.oracle_log_likelihoods,
                )
            )
        if replies:
            raise DataError(f"{len(replies)} answers of {task.name} belong to no test row; scores would be wrong.")
        return found

    def _compat(self, task: Task | Suite, row: Row, reply: str) -> float | None:
        """A row as its release's script scores it; None where the release is not known, or scores no single rows."""
        if isinstance(task, Suite):
            return suite_score(task.name, reply, row.answers, question_of(row), row.metric)
        return compat_row_score(
            task.name, reply, row.answers, stream=self.plan.stream.name, prompt=question_of(row), metric=row.metric
        )

    def _captions(self, table: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Figures by task, of tasks whose release scores captions as whole files; empty for all others."""
        found: dict[str, dict[str, float]] = {}
        for task, rows in by_task(table).items():
            replies, answers = [row.prediction for row in rows], [list(row.answers) for row in rows]
            if scored := compat_task_figures(task, replies, answers, stream=self.plan.stream.name):
                found[task] = scored
        return found

    def _record(
        self,
        row: MatrixRow,
        rows: list[MatrixRow],
        table: Sequence[Prediction],
        *,
        learned: int,
        train_s: float,
        started: float,
    ) -> None:
        decisions = write_decisions(self.plan, rows, self.method)
        write_matrix(self.plan, rows)
        checkpoint = self.plan.run_dir / "checkpoints" / f"{learned:02d}-{row.after}"
        self.send(
            RowScored(
                tasks_learned=learned,
                after=row.after,
                points=self.plan.stream.points,
                scores=row.scores,
                variants=row.variants,
                well_formed=shares(table, lambda one: bool(one.well_formed)),
                routing_accuracy=shares(table, lambda one: one.routed_to == self.method.owner(one.task))
                if self.method.is_routed and learned
                else None,
                slot_usage=slot_usage(table, self.method.num_slots) if learned else None,
                decisions=decisions.to_dict() if decisions else None,
                budget=judged_row(self.plan, rows),
                train_s=train_s,
                evaluate_s=time.monotonic() - started,
                replies=len(table),
                kept_replies=self.tally.kept,
                peak_memory_bytes=peak_memory_bytes(self.device),
                checkpoint_path=str(checkpoint) if learned else None,
                samples=logged_samples(table),
            )
        )


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process in bytes: GPU memory on a GPU, resident memory otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
