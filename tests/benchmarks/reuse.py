"""What it saves that replies are kept: a stream of small tasks, scored after each task with reuse and without it.

    python tests/benchmarks/reuse.py [--tasks 8] [--rows 32] [--method continual_llava] [--backbone smol]

Both sides have the same model after every task and answer the same rows, row of the matrix by row of the matrix, in
alternating order; their replies must be equal. A figure is CPU time of the whole process. Two predictions stand beside:

- **answered**: rows of a stream whose old rows never change, over all rows: a cell for each task and one for each
  zero-shot, of T (T + 1) / 2 and T.
- **run**: the wall time of a run that trains as long as answering all rows takes at T = 4 (the default run: 45 % of its
  time is scoring), if scoring shrinks by the measured ratio. Aims: 0.75 at 4 tasks, 0.6 at 8, 0.3 at 40.

Zero-shot replies are answered once by either side, as in the first run of a storage; what a second run there would take
is told apart.

With `--field`, also by arithmetic from parts that are measured here: CPU seconds of the field's way, a process for each
task and each cell that answers one by one, over those of one run. Aims: 1.8 at 4 tasks, 8 at 40; and 3 at 4 tasks when
the run has bfloat16 weights, of which as many replies are printed as are other than float32's.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from components.adapters.serving import Digests
from components.data.batch import Batch, Example, collate
from components.data.rows import Row, Turn
from components.evaluation.generation import Answer, answer
from components.evaluation.reuse import KeptReply, Reuse
from components.methods import method_config
from components.methods.base import Method, TaskInfo
from components.methods.options.continual_llava import ContinualLlavaConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.training.dtype_probe import probed
from components.training.engine import TorchEngine
from components.training.kept_cells import state_digest
from components.training.optimizer import OptimizerConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.benchmarks.bars import print_bar, print_unmeasured  # noqa: E402
from tests.benchmarks.processes import cpu_by_kind  # noqa: E402

WORDS = (
    *("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "haven", "inlet"),
    *("jetty", "knoll", "larch", "marsh", "north", "ochre", "plume", "quill", "ridge"),
)
SHARE_AT_4 = 0.45  # of a run's time that scoring takes at four tasks
AIMS = {4: 0.75, 8: 0.6, 40: 0.3}
FIELD_AIMS = {("float32", 4): 1.8, ("float32", 40): 8.0, ("bfloat16", 4): 3.0}


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is measured."""

    tasks: tuple[int, ...] = (4, 8)
    """Lengths of the streams."""
    rows: int = 16
    """Test rows of a task."""
    method: str = "continual_llava"
    """The method, with its options for small backbones."""
    backbone: Literal["pocket", "smol"] = "pocket"
    """The frozen model."""
    field: bool = False
    """Compare with a process for each task and cell, too; this needs smol."""
    words: Literal["own", "shared"] = "own"
    """Whether a task asks in words that no other task uses, or all tasks in the same ones and a few that tell them
    apart."""
    alignment: int = 480
    """Updates of a task's keys before it trains, in Continual LLaVA: with 60, its option for quick tests, keys of such
    small tasks are near their questions by chance only, and nearly every row changes its slots with every task."""
    batch_size: int = 16
    """Rows that are answered together."""
    updates: int = 6
    """Optimizer updates of a task."""
    limit_s: float = 150.0
    """No new stream is begun after so many seconds."""


@dataclass
class Side:
    """One way of scoring, and what it took."""

    reuse: bool
    known: dict[str, KeptReply] = field(default_factory=dict)
    cpu_s: float = 0.0
    zero_shot_s: float = 0.0
    answered: int = 0
    rows: int = 0


def task_rows(number: int, count: int, words: Literal["own", "shared"]) -> list[Row]:
    """Questions of one task, and their answers."""
    draw, size = random.Random(number), len(WORDS)
    made = [
        "".join(draw.choices("bcdfghklmnprstvz", k=2)[n % 2] + draw.choice("aeiou") for n in range(3)) for _ in range(8)
    ]
    rows = []
    for row in range(count):
        if words == "own":
            name, question, reply = made[0], f"{' '.join(made)} {made[row % 8]}", made[(row + 1) % 8]
        else:
            name = WORDS[number % size]
            told = f"{name} {WORDS[(number // size + 7 * number + 3) % size]} {number}"
            question, reply = f"{told}: what follows {WORDS[row % size]}?", WORDS[(row + number) % size]
        kind = Row(
            sample_id=f"{number}-{row}",
            task=f"{name}-{number}",
            split="test",
            turns=(Turn(speaker="human", text=question), Turn(speaker="gpt", text=reply)),
            answers=(reply,),
            metric="exact",
            source="benchmark",
        )
        rows.append(kind)
    return rows


def learn(method: Method, model: Backbone, info: TaskInfo, batch: Batch, updates: int) -> float:
    """A few updates with the plain engine; CPU seconds of the quickest."""
    method.begin_task(model, info)
    engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-2))
    model.train()
    quickest = float("inf")
    for _ in range(updates):
        started = time.process_time()
        with method.select(model, batch) as selection:
            outputs = model(batch)
            engine.backward(method.loss(model, batch, outputs, selection).total)
        method.step(engine)
        quickest = min(quickest, time.process_time() - started)
    method.end_task(engine, info, iter([batch]))
    engine.close()
    model.eval()
    return quickest


def score(
    side: Side,
    method: Method,
    model: Backbone,
    encoder: Encoder,
    tasks: list[tuple[TaskInfo, list[Example]]],
    arithmetic: str,
    batch_size: int,
    digests: Digests | None = None,
) -> list[list[Answer]]:
    """One row of the matrix, and what it took."""
    started, table = time.process_time(), []
    state = state_digest(method.state_dict(model))  # a run needs it with and without reuse
    digests = digests or Digests()
    for info, examples in tasks:
        reuse = Reuse(known=side.known, arithmetic=arithmetic, state=state, digests=digests, asked=info.instructions)
        with method.test_file(info.instructions):
            found = answer(
                model,
                method,
                encoder,
                examples,
                batch_size=batch_size,
                max_new_tokens=8,
                device=torch.device("cpu"),
                known_task=info.name if method.config.needs_task_id else None,
                reuse=reuse if side.reuse else None,
            )
        table.append(found)
        side.rows += len(found)
        side.answered += sum(one.kept is None for one in found)
        side.known.update(
            {
                one.key: KeptReply(
                    text=one.text, cell="", slots=one.slots, routed_to=one.routed_to, matched=one.matched
                )
                for one in found
                if one.key is not None
            }
        )
    took = time.process_time() - started
    side.cpu_s += took
    side.zero_shot_s += took * (not method.tasks)
    return table


@dataclass(frozen=True, kw_only=True)
class Parts:
    """CPU seconds of what runs are made of."""

    length: int
    rows: int  # of a task
    update: float
    alone: float  # an answer, one by one
    batched: float
    kept: float  # a kept reply: it is routed, and looked up
    digests: float  # of one task's parameters, in each row of the matrix
    answered: int  # of old and new rows after each task

    def field(self, tasks: int, updates: int, rows: int, start: float) -> float:
        """A process for each task and each cell, which answers one by one."""
        cells = tasks * (tasks + 1) / 2
        return (tasks + cells) * start + tasks * updates * self.update + cells * rows * self.alone

    def ours(self, tasks: int, updates: int, rows: int, start: float) -> float:
        """One run without zero-shot, whose processes take `start`; of old rows it answers the measured share again."""
        old, old_here = tasks * (tasks - 1) / 2, self.length * (self.length - 1) / 2
        again = (self.answered / self.rows - self.length) / old_here * old
        scoring = (tasks + again) * rows * self.batched + (old - again) * rows * self.kept
        scoring += tasks * (tasks + 1) / 2 * self.digests
        return start + tasks * updates * self.update + scoring


def process_s() -> float:
    """CPU seconds of a process that imports what a training script does and loads smol."""
    code = (
        "import peft, transformers; from components.models.backbone import load_backbone; "
        "from components.models.config import BackboneConfig; load_backbone(BackboneConfig(name='smol'))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_s() -> float:
    """CPU seconds of a run of one update and one answer: what all its processes take beside its work."""
    command = [sys.executable, "pipelines/coast.py", "coast-nano", "--method", "sequential-lora", "--run-id", "start"]
    command += ["--stream.order", "chartqa", "--training.updates-per-task", "1", "--evaluation.limit", "1"]
    with tempfile.TemporaryDirectory() as storage:
        command += ["--evaluation.no-zero-shot", "--storage", storage]
        seconds, _, _, code = cpu_by_kind(command, os.environ | {"PYTHONPATH": str(ROOT)})
    assert not code, f"the run ended with code {code}"
    return sum(seconds.values())


def in_bfloat16(
    parts: Parts,
    command: Command,
    method: Method,
    model: Backbone,
    encoder: Encoder,
    tasks: list[tuple[TaskInfo, list[Example]]],
    batch: Batch,
) -> Parts:
    """The same parts with bfloat16 weights: an update of one more task, and answers after the last one."""
    narrow, same = load_backbone(replace(model.config, dtype="bfloat16")), method.config.build(seed=0)
    same.attach(narrow, method.state_dict(model))
    narrow.eval()
    wide, low = Side(reuse=False), Side(reuse=False)
    found = [
        score(side, one, of, encoder, tasks, "", command.batch_size)
        for side, one, of in ((Side(reuse=False), same, narrow), (low, same, narrow), (wide, method, model))
    ]
    equal = sum(
        one.text == other.text
        for mine, theirs in zip(found[1], found[2], strict=True)
        for one, other in zip(mine, theirs, strict=True)
    )
    further = replace(tasks[-1][0], index=len(tasks), name="further")
    update = learn(same, narrow, further, batch, command.updates)
    print(
        f"\nbfloat16: an update {update / parts.update:.2f} of float32's time, answers {low.cpu_s / wide.cpu_s:.2f}; "
        f"{equal} of {low.rows} replies the same"
    )
    return replace(parts, update=update, batched=parts.batched * low.cpu_s / wide.cpu_s)


def stream(command: Command, length: int) -> dict[str, Parts]:
    """Print a line of a table and its bars: the stream of so many tasks, scored in both ways. Parts by type of number;
    none of bfloat16 without `--field` and where the processor is not quicker in it."""
    backbone = BackboneConfig(name=command.backbone)
    encoder, model = build_encoder(backbone), load_backbone(backbone)
    config = method_config(command.method).tiny()
    if isinstance(config, ContinualLlavaConfig):
        config = replace(config, alignment_min_updates=command.alignment)
    method = config.build(seed=0)
    method.attach(model, None)
    model.eval()
    tasks: list[tuple[TaskInfo, list[Example]]] = []
    batches: list[Batch] = []
    for number in range(length):
        rows = task_rows(number, command.rows, command.words)
        info = TaskInfo(index=number, name=rows[0].task, instructions=[row.instruction for row in rows])
        tasks.append((info, [encoder.prompt_example(row) for row in rows]))
        training = [encoder.training_example(row) for row in rows[: 4 if command.field else 8]]  # as the default run
        batches.append(collate(training, pad_id=encoder.pad_id, padding_side="right"))
    arithmetic = model.arithmetic()  # once for a run, as its worker does
    sides = Side(reuse=False), Side(reuse=True)
    update_s, answered, alone = [0.0], 0, 0.0
    for learned in range(length + 1):
        if learned:
            update_s.append(learn(method, model, tasks[learned - 1][0], batches[learned - 1], command.updates))
        due = tasks[:learned] if learned else tasks
        score(Side(reuse=False), method, model, encoder, due, arithmetic, command.batch_size)  # warms up either side
        order = sides if learned % 2 else sides[::-1]
        found = {side.reuse: score(side, method, model, encoder, due, arithmetic, command.batch_size) for side in order}
        plain, kept = (
            [[(one.sample_id, one.text) for one in cell] for cell in found[reuse]] for reuse in (False, True)
        )
        assert plain == kept, f"other replies after {learned} tasks"
        answered = sides[1].answered if not learned else answered
    off, on = sides
    expected = (2 * length) / (length * (length + 1) / 2 + length)
    ratio, second = on.cpu_s / off.cpu_s, (on.cpu_s - on.zero_shot_s) / off.cpu_s
    # Training grows with T, scoring with T squared: at T = 4 it is SHARE_AT_4 of both.
    scoring = SHARE_AT_4 * (length * (length + 1) / 2 + length) / 14
    training = (1 - SHARE_AT_4) * length / 4
    run, again = ((training + scoring * each) / (training + scoring) for each in (ratio, second))
    aim = f"{AIMS[length]:.2f}" if length in AIMS else ""
    print(
        f"| {command.method}, {command.words} words | {length} | "
        f"{on.answered} of {off.answered} | {on.answered / off.answered:.2f} | "
        f"{expected:.2f} | {off.cpu_s:.1f} | {on.cpu_s:.1f} | {ratio:.2f} | {run:.2f} | {again:.2f} | {aim} |",
        flush=True,
    )
    if length in AIMS:
        floor = (training + scoring * expected) / (training + scoring)
        why = f"{on.answered} of {off.answered} rows are answered; if no old row changed, {floor:.2f}"
        print_bar(f"first run of {length} tasks, of its time before (arithmetic)", run, "at most", AIMS[length], why)
        print_bar(
            f"run of {length} tasks that finds zero-shot replies (arithmetic)", again, "at most", AIMS[length], why
        )
    if command.field:
        singly = Side(reuse=False)
        score(singly, method, model, encoder, tasks, arithmetic, 1)
        alone = singly.cpu_s / singly.rows
    digests, took = Digests(), list[float]()
    for _ in range(2):  # all replies are kept: first with parameters to be digested, then without
        whole = Side(reuse=True, known=on.known)
        score(whole, method, model, encoder, tasks, arithmetic, command.batch_size, digests)
        assert not whole.answered
        took.append(whole.cpu_s)
    started = time.process_time()
    state_digest(method.state_dict(model))
    state_s = time.process_time() - started
    parts = Parts(
        length=length,
        rows=command.rows,
        update=statistics.median(update_s[1:]),
        alone=alone,
        batched=off.cpu_s / off.rows,
        kept=max(0.0, took[1] - state_s) / (length * command.rows),
        digests=max(0.0, took[0] - took[1]) / length,
        answered=on.answered - answered,
    )
    if not command.field or probed().dtype != "bfloat16":
        return {"float32": parts}
    return {
        "float32": parts,
        "bfloat16": in_bfloat16(parts, command, method, model, encoder, tasks, batches[-1]),
    }


def print_field(parts: dict[str, Parts], start: float, own: float) -> None:
    """The field's way is in float32, and a process of it takes `start` CPU seconds until it can train; our run's
    processes take `own`."""
    for (dtype, tasks), aim in FIELD_AIMS.items():
        for size, (updates, rows) in {"mini": (60, 100), "nano": (24, 16)}.items():
            name = f"{size}, {tasks} tasks{', ours in bfloat16' if dtype == 'bfloat16' else ''}"
            if dtype not in parts:
                print_unmeasured([f"field's time over ours, {name} (arithmetic)"], str(probed()))
                continue
            field = parts["float32"].field(tasks, updates, rows, start)
            ours = parts[dtype].ours(tasks, updates, rows, own)
            learning = tasks * updates * parts[dtype].update
            why = (
                f"{field:.0f} s against {ours:.0f}, of which {own:.0f} are a run's own processes and "
                f"{learning:.0f} updates"
            )
            print_bar(f"field's time over ours, {name} (arithmetic)", field / ours, "at least", aim, why)


def main(command: Command) -> None:
    torch.set_num_threads(1)
    started = time.monotonic()
    print(f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores, torch {torch.__version__}, CPU seconds\n")
    print("| method | tasks | answered | share | predicted | without | with | ratio | run | second run | aim |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for length in command.tasks:
        if time.monotonic() - started > command.limit_s:
            print(f"| {command.method} | {length} | not begun after {command.limit_s:.0f} s |")
            continue
        parts = stream(command, length)
        if not command.field:
            continue
        assert command.backbone == "smol", "--field compares processes that load smol"
        start, own = process_s(), run_s()
        print(f"\nCPU seconds: a process {start:.1f}, a run's processes {own:.1f}, {parts}\n", flush=True)
        print_field(parts, start, own)


if __name__ == "__main__":
    main(tyro.cli(Command))
