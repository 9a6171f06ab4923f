"""One row of the score matrix: every task due is answered, scored, written as Parquet and put into the matrix file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import torch
import torch.distributed as dist

from components.core.errors import DataError
from components.core.events import EvaluationProgress, Event, RowScored
from components.core.files import whole_file, write_text
from components.data.batch import Example
from components.data.rows import Row, instruction_of, plain_instruction
from components.data.suite import Suite
from components.data.tasks import Task
from components.evaluation.decisions import DECISIONS_FILE, Decisions, Served, served_from_json
from components.evaluation.forgetting import SPLITS, split_if_known
from components.evaluation.generation import Answer, answer
from components.evaluation.matrix import ScoreMatrix
from components.methods.base import Method
from components.metrics import score
from components.metrics.answer_format import FormRepair, form_of, obeys
from components.metrics.released.suite_rules import suite_score
from components.metrics.released.tasks import MEAN, compat_row_score, compat_task_figures
from components.training.peak_memory import peak_memory_bytes
from components.training.streaming import dataset_name, encoded_blocks, examples

if TYPE_CHECKING:
    from components.models.backbone import Backbone
    from components.models.encoding import Encoder
    from components.training.entry import WorkerPlan

ZERO_SHOT = "zero-shot"
MATRIX_FILE = "score_matrix.json"
# Other readings of the same rows, by the column of the predictions that they average. oracle: the task was told;
# repaired: the answer in a wrongly formed reply counts; compat: by the released script's rule for a task of that name.
VARIANTS = {"oracle": "oracle_score", "repaired": "repaired_score", "compat": "compat_score"}
Record = dict[str, object]  # one row of the predictions, by PREDICTIONS_SCHEMA
WINDOW_ROWS = 512  # answered at once: enough to sort by length, little to hold
SAMPLES_LOGGED = 4  # predictions per task sent to the tracker to look at

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("after", pa.string()),
        ("task", pa.string()),
        ("sample_id", pa.string()),
        ("prompt", pa.string()),
        ("prediction", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("metric", pa.string()),
        ("well_formed", pa.bool_()),
        ("repaired_score", pa.float64()),
        ("compat_score", pa.float64()),
        ("routed_to", pa.string()),
        ("slots", pa.list_(pa.int64())),
        ("matched", pa.bool_()),
        ("oracle_prediction", pa.string()),
        ("oracle_score", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """A finished row as the checkpoint keeps it; scores are 0..100, None where a task was not evaluated."""

    after: str
    scores: dict[str, float | None]
    variants: dict[str, dict[str, float | None]] = field(default_factory=dict)  # by their names in READINGS
    served: dict[str, dict[str, Any]] = field(default_factory=dict)  # by task, a `Served` as plain JSON

    @classmethod
    def stored(cls, content: Mapping[str, Any]) -> MatrixRow:
        """From a checkpoint, also an older one that knew oracle routing only."""
        older = {name: content.get(f"{name}_scores") for name in VARIANTS}
        variants = content.get(
            "variants", content.get("readings", {name: scores for name, scores in older.items() if scores})
        )
        served = content.get("served", {})
        return cls(after=content["after"], scores=content["scores"], variants=variants, served=served)


class RowScorer:
    """Scores rows on all workers together: each rank answers its stride of the rows, rank 0 scores and writes."""

    def __init__(
        self,
        *,
        plan: WorkerPlan,
        model: Backbone,
        method: Method,
        encoder: Encoder,
        device: torch.device,
        send: Callable[[Event], None],
    ) -> None:
        self.plan, self.model, self.method = plan, model, method
        self.encoder, self.device, self.send = encoder, device, send
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()

    def score(self, rows: list[MatrixRow], *, learned: int, train_s: float) -> MatrixRow:
        """Evaluate the row after `learned` tasks (0 = zero-shot) and return it; rank 0 also writes and announces it."""
        started = time.monotonic()
        stream, evaluation = self.plan.stream, self.plan.config.evaluation
        after = stream.task_names[learned - 1] if learned else ZERO_SHOT
        due = stream.tasks if not learned or evaluation.unseen else stream.tasks[:learned]
        self.model.eval()
        table: list[Record] = []
        for task in due:
            told = task.name if evaluation.oracle_routing and self.method.is_routed and learned else None
            rows_due = min(task.test.num_rows, evaluation.limit or task.test.num_rows)
            table += self.records(task, after, num_rows=rows_due, oracle_task=told)
        names = stream.task_names
        variants = {
            variant: {name: _mean(table, name, column) for name in names}
            for variant, column in VARIANTS.items()
            if any(record[column] is not None for record in table)
        }
        captions = self._captions(table)
        if whole := {task: figures[MEAN] for task, figures in captions.items() if MEAN in figures}:
            variants["compat"] = {**variants.get("compat", dict.fromkeys(names)), **whole}
        row = MatrixRow(
            after=after,
            scores={name: _mean(table, name, "score") for name in names},
            variants=variants,
            served=_served(table, self.method.owner) if learned else {},
        )
        if self.rank == 0:
            if captions:
                write_captions(self.plan.run_dir / "predictions" / f"{learned:02d}-{after}.captions.json", captions)
            self._record(row, [*rows, row], table, learned=learned, train_s=train_s, started=started)
        return row

    def records(self, task: Task | Suite, after: str, *, num_rows: int, oracle_task: str | None = None) -> list[Record]:
        """Predictions of a task's or suite's first rows, scored (on rank 0; empty elsewhere). All ranks take part.

        A suite belongs to no task: a method routes its rows as it would route anybody's.
        """
        config = self.plan.config
        answers: list[Answer] = []
        with self.method.test_file(test_instructions(task)):
            for window in self._windows(task):
                answers += answer(
                    self.model,
                    self.method,
                    self.encoder,
                    window,
                    batch_size=config.evaluation.batch_size,
                    max_new_tokens=task.max_new_tokens,
                    device=self.device,
                    told_task=task.name if config.method.needs_task_id else None,
                    oracle_task=oracle_task,
                    progress=self._progress(after, task.name, before=len(answers), total=num_rows),
                )
        gathered = self._gather(answers)
        return self._scored(task, after, gathered, num_rows) if self.rank == 0 else []

    def _progress(self, after: str, task: str, *, before: int, total: int) -> Callable[[int], None]:
        def send(done: int) -> None:
            seen = min((before + done) * self.world_size, total)  # the other ranks are about as far
            self.send(EvaluationProgress(after=after, task=task, done=seen, total=total))

        return send

    def _windows(self, task: Task | Suite) -> Iterator[list[Example]]:
        name = dataset_name("suite" if isinstance(task, Suite) else "test", task.name, self.rank)
        for block in encoded_blocks(name, batch_size=WINDOW_ROWS):
            yield list(examples(block.to_pylist(), self.plan.config.backbone.dtype))

    def _gather(self, answers: list[Answer]) -> list[Answer]:
        if self.world_size == 1:
            return answers
        parts: list[list[Answer]] | None = [[] for _ in range(self.world_size)] if self.rank == 0 else None
        dist.gather_object(answers, parts)
        return [item for part in parts or [] for item in part]

    def _scored(self, task: Task | Suite, after: str, answers: list[Answer], num_rows: int) -> list[Record]:
        replies = {item.sample_id: item for item in answers}
        repair = FormRepair.of(row.answers for row in task.test.rows(with_image=False))
        records: list[Record] = []
        for row in task.test.rows(with_image=False, limit=num_rows):
            reply = replies.pop(row.sample_id, None)
            if reply is None:
                raise DataError(f"test row {row.sample_id} of {task.name} was not answered; scores would be wrong.")
            oracle, asked = reply.oracle_text, _question(row)
            records.append(
                {
                    "after": after,
                    "task": task.name,
                    "sample_id": row.sample_id,
                    "prompt": row.instruction,
                    "prediction": reply.text,
                    "answers": list(row.answers),
                    "score": score(row.metric, reply.text, row.answers, asked),
                    "metric": row.metric,
                    "well_formed": obeys(form_of(row.metric, row.answers), reply.text, row.answers),
                    "repaired_score": repair.score(row.metric, asked, reply.text, row.answers),
                    "compat_score": self._compat(task, row, reply.text),
                    "routed_to": reply.routed_to,
                    "slots": None if reply.slots is None else list(reply.slots),
                    "matched": reply.matched,
                    "oracle_prediction": oracle,
                    "oracle_score": None if oracle is None else score(row.metric, oracle, row.answers, asked),
                }
            )
        if replies:
            raise DataError(f"{len(replies)} answers of {task.name} belong to no test row; scores would be wrong.")
        return records

    def _compat(self, task: Task | Suite, row: Row, reply: str) -> float | None:
        """A row as its release's script scores it; None where the release is not known, or scores no single rows."""
        if isinstance(task, Suite):
            return suite_score(task.name, reply, row.answers, _question(row), row.metric)
        return compat_row_score(
            task.name, reply, row.answers, stream=self.plan.stream.name, prompt=_question(row), metric=row.metric
        )

    def _captions(self, table: list[Record]) -> dict[str, dict[str, float]]:
        """Of tasks whose release scores captions as whole files: those figures, by task; kept beside the matrix."""
        found: dict[str, dict[str, float]] = {}
        for task in dict.fromkeys(str(record["task"]) for record in table):
            rows = [record for record in table if record["task"] == task]
            replies = [str(record["prediction"]) for record in rows]
            answers = [cast("list[str]", record["answers"]) for record in rows]
            if figures := compat_task_figures(task, replies, answers, stream=self.plan.stream.name):
                found[task] = figures
        return found

    def _record(
        self,
        row: MatrixRow,
        rows: list[MatrixRow],
        table: list[Record],
        *,
        learned: int,
        train_s: float,
        started: float,
    ) -> None:
        predictions = self.plan.run_dir / "predictions" / f"{learned:02d}-{row.after}.parquet"
        write_predictions(predictions, table)
        decisions = write_decisions(self.plan, rows, self.method)
        write_matrix(self.plan, rows)
        checkpoint = self.plan.run_dir / "checkpoints" / f"{learned:02d}-{row.after}"
        self.send(
            RowScored(
                tasks_learned=learned,
                after=row.after,
                scores=row.scores,
                variants=row.variants,
                well_formed=_shares(table, lambda record: bool(record["well_formed"])),
                routing_accuracy=_shares(
                    table, lambda record: record["routed_to"] == self.method.owner(str(record["task"]))
                )
                if self.method.is_routed and learned
                else None,
                slot_usage=_slot_usage(table, self.method.num_slots) if learned else None,
                decisions=decisions.to_dict() if decisions else None,
                train_s=train_s,
                evaluate_s=time.monotonic() - started,
                peak_memory_bytes=peak_memory_bytes(self.device),
                predictions_path=str(predictions),
                checkpoint_path=str(checkpoint) if learned else None,
                samples=_samples(table),
            )
        )


def test_instructions(task: Task | Suite) -> list[str]:
    """First human turns of all test rows, however few of them are due, in stored order; no picture is decoded."""
    return [instruction_of(str(text)) for text in task.test.column("conversations")]


def write_predictions(path: Path, table: list[Record]) -> None:
    """Every reply as Parquet; the file is whole or not there."""
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(table, schema=PREDICTIONS_SCHEMA), partial)


def write_captions(path: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    """BLEU, METEOR, ROUGE-L and CIDEr of caption tasks, times 100, by task; the file is whole or not there."""
    write_text(path, json.dumps(figures, indent=2) + "\n")


def matrix_of(tasks: list[str], rows: list[MatrixRow], variant: str | None = None) -> ScoreMatrix:
    """The score matrix of finished rows, or another reading of them; cells that it has not are empty."""
    cells = [row.scores if variant is None else row.variants.get(variant, dict.fromkeys(tasks)) for row in rows]
    return ScoreMatrix(tasks, [[row[name] for name in tasks] for row in cells], after=[row.after for row in rows])


def variant_file(run_dir: Path, variant: str) -> Path:
    """Where a run keeps another reading of its matrix."""
    return run_dir / f"{variant}_matrix.json"


def write_matrix(plan: WorkerPlan, rows: list[MatrixRow]) -> None:
    """Replace the matrix files by the rows so far, each atomically; `score_matrix.json` last."""
    config, tasks = plan.config, plan.stream.task_names
    matrix = matrix_of(tasks, rows)
    variants = {name: matrix_of(tasks, rows, name) for name in VARIANTS if any(name in row.variants for row in rows)}
    splits = {
        name: {"forgetting_split": split_if_known(matrix, {name: variants[name]})}
        for name in SPLITS
        if name in variants
    }
    files = {variant_file(plan.run_dir, name): (other, splits.get(name)) for name, other in variants.items()}
    for path, (content, extra) in {**files, plan.run_dir / MATRIX_FILE: (matrix, None)}.items():
        content.write(
            path,
            stream=plan.stream.name,
            method=config.method.name,
            backbone=config.backbone.name,
            seed=config.seed,
            extra={"scored_on": config.evaluation.split, **(extra or {})},
        )


def write_decisions(plan: WorkerPlan, rows: list[MatrixRow], method: Method) -> Decisions:
    """Replace decisions.json by what the method decided so far and whom it served, atomically; no file for nothing."""
    served = served_from_json({row.after: row.served for row in rows if row.served})
    decisions = Decisions(tasks=method.decisions(), served=served)
    if decisions:
        decisions.write(plan.run_dir / DECISIONS_FILE)
    return decisions


def _served(table: list[Record], owner: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Who served each task's rows, by task; empty for a method that does not route."""
    found: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(str(record["task"]) for record in table):
        rows = [record for record in table if record["task"] == task]
        routed = [None if record["routed_to"] is None else str(record["routed_to"]) for record in rows]
        matched = [None if record["matched"] is None else bool(record["matched"]) for record in rows]
        if any(name is not None for name in routed):
            found[task] = asdict(Served.of(owner(task), routed, matched))
    return found


def _question(row: Row) -> str:
    """What the scored turn answers: the last question of the row, without the picture's mark."""
    return plain_instruction(next((turn.text for turn in reversed(row.turns) if turn.speaker == "human"), ""))


def _mean(table: list[Record], task: str, column: str) -> float | None:
    values = [float(str(record[column])) for record in table if record["task"] == task and record[column] is not None]
    return 100.0 * sum(values) / len(values) if values else None


def _shares(table: list[Record], holds: Callable[[Record], bool]) -> dict[str, float]:
    """By task: the share of its records for which `holds`."""
    found: dict[str, list[bool]] = {}
    for record in table:
        found.setdefault(str(record["task"]), []).append(holds(record))
    return {task: sum(values) / len(values) for task, values in sorted(found.items())}


def _slot_usage(table: list[Record], num_slots: int | None) -> dict[str, list[int]] | None:
    """How often each of the method's slots served each task; None where slots are not told."""
    if num_slots is None or not any(record["slots"] for record in table):
        return None
    usage: dict[str, list[int]] = {}
    for record in table:
        counts = usage.setdefault(str(record["task"]), [0] * num_slots)
        for slot in record["slots"] or []:  # type: ignore[union-attr]
            counts[int(slot)] += 1
    return usage


def _samples(table: list[Record]) -> list[dict[str, str | float]]:
    seen: dict[str, int] = {}
    samples: list[dict[str, str | float]] = []
    for record in table:
        task = str(record["task"])
        seen[task] = seen.get(task, 0) + 1
        if seen[task] <= SAMPLES_LOGGED:
            answers = record["answers"]
            assert isinstance(answers, list)
            samples.append(
                {
                    "task": task,
                    "sample_id": str(record["sample_id"]),
                    "prompt": str(record["prompt"]),
                    "prediction": str(record["prediction"]),
                    "answers": " | ".join(answers),
                    "score": float(str(record["score"])),
                }
            )
    return samples
