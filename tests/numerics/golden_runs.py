"""Two tiny runs written down number by number, to see whether a change altered any: tests/numerics/golden/*.txt.

Rows, lessons, order of rows, learning rates and the order of the method's hooks are those of a real run; one process
and the plain engine stand in for Ray and DeepSpeed. After a change that is meant to alter numbers, write the files anew
and commit them with it, saying why:

    python tests/numerics/golden_runs.py
"""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from components.data.batch import Batch, collate
from components.data.rows import IMAGE_TOKEN, Row, Turn, write_split
from components.data.tasks import Task, TaskStream
from components.methods.base import Method, TaskInfo
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.training.config import RunConfig, TrainingConfig
from components.training.engine import TorchEngine, mean_over_workers
from components.training.schedule import ScheduledTask, plan_schedule
from components.training.streaming import Loader, encoder_for, examples
from components.training.windows import Slice, plan_windows, stretches_of

METHODS = ("continual_llava", "lcia")
FOLDER = Path(__file__).parent / "golden"
COMMAND = "python tests/numerics/golden_runs.py"
# Adapters are float32, whose sums round differently on another processor or torch. Frozen weights that are wrong by up
# to 1e-6 moved the numbers by 1e-6 relative or 4e-7 at most; a rate or an option that differs by 0.1 % moves some by
# 1e-3, AdamW's beta2 of 0.998 by 5e-5. A processor without AVX-512 moves LCIA's least EMA weight by 1.1e-6.
RELATIVE, ABSOLUTE = 5e-6, 3e-6
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")
BATCH, EPOCHS = 4, 2
# Name, colour of the picture (None: no picture), and the answer in each of the two tasks.
THINGS = (
    ("square", (220, 30, 30), "red", "left"),
    ("circle", (30, 180, 40), "green", "right"),
    ("triangle", (30, 60, 220), "blue", "top"),
    ("star", None, "yellow star", "bottom"),
    ("house", (230, 220, 40), "yellow", "left top"),
    ("tree", (20, 120, 20), "green", "right"),
    ("cat", None, "black", "bottom"),
    ("dog", (120, 80, 40), "brown", "left"),
    ("bar", (128, 128, 128), "grey", "top right"),
    ("line", None, "black", "top"),
    ("icon", (200, 40, 200), "purple", "bottom left"),
    ("chart", (250, 250, 250), "white", "right"),
    ("table", (240, 150, 30), "orange", "left"),
    ("page", None, "white", "bottom"),
)
# The last line, which LCIA compares, is the same in both tasks: the second one is averaged.
TASKS = {
    "colours": "What is the colour of the {}?\nAnswer the question using a single word or phrase.",
    "places": "Where is the {} in the picture?\nAnswer the question using a single word or phrase.",
}


def golden_config(method: str, *, seed: int = 0) -> RunConfig:
    """The run of `method`, with the options that it has on the pocket backbone."""
    training = TrainingConfig(engine="torch", epochs=EPOCHS, global_batch_size=BATCH)
    return RunConfig(seed=seed, backbone=BackboneConfig(name="pocket"), training=training).with_method(method)


def golden_lines(config: RunConfig, folder: Path, *, noise: float = 0.0) -> list[str]:
    """Everything the run computes, in its order. `noise`: relative error of the frozen weights, as if by rounding."""
    torch.set_num_threads(1)
    schedule = plan_schedule(config, golden_stream(folder))
    model = load_backbone(config.backbone)
    if noise:
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data *= 1 + noise * (2 * torch.rand(parameter.shape, generator=generator) - 1)
    torch.manual_seed(config.seed)
    method = config.method.build(seed=config.seed)
    method.attach(model, None)
    method.prepare([text for scheduled in schedule for text in instructions_of(scheduled)])
    lines = []
    for number, scheduled in enumerate(schedule):
        lines += learned_lines(config, scheduled, method, model)
        state = method.state_dict(model).tensors
        lines += [f"{scheduled.task.name} norm {name} {float(state[name].norm()):.9g}" for name in sorted(state)]
        decisions = method.decisions().get(scheduled.task.name, {})
        lines += [f"{scheduled.task.name} decided {name} {value}" for name, value in decisions.items()]
        for seen in schedule[: number + 1]:
            lines += [f"{scheduled.task.name} after {line}" for line in scored_lines(config, seen, method, model)]
    return lines


def golden_stream(folder: Path) -> TaskStream:
    """Two tasks that ask about the same pictures; their rows are written below `folder`."""
    tasks = []
    for name, question in TASKS.items():
        rows = []
        for thing, colour, *answers in THINGS:
            picture = io.BytesIO()
            if colour is not None:
                Image.new("RGB", (64, 64), colour).save(picture, format="PNG")
            text, answer = question.format(thing), answers[list(TASKS).index(name)]
            rows.append(
                Row(
                    sample_id=thing,
                    task=name,
                    split="train",
                    turns=(
                        Turn(speaker="human", text=text if colour is None else f"{IMAGE_TOKEN}\n{text}"),
                        Turn(speaker="gpt", text=answer),
                    ),
                    answers=(answer,),
                    metric="exact",
                    source="test",
                    image=picture.getvalue() or None,
                    width=None if colour is None else 64,
                    height=None if colour is None else 64,
                )
            )
        split = write_split(rows, folder / name, task=name, split="train")
        tasks.append(Task(name=name, train=split, test=split, max_new_tokens=4))
    return TaskStream(name="golden", tasks=tuple(tasks))


def learned_lines(config: RunConfig, scheduled: ScheduledTask, method: Method, model: Backbone) -> list[str]:
    """Learn one task as a worker does; a line per update: the rows, what serves them, loss and length of gradient."""
    name, updates = scheduled.task.name, scheduled.num_updates
    info = TaskInfo(index=len(method.tasks), name=name, instructions=instructions_of(scheduled))
    batches = [*batches_of(scheduled, config, seed=config.seed)]
    method.begin_task(model, info)
    method.calibrate(
        model, info, iter(batches[: math.ceil(config.method.calibration_share * updates)]), mean_over_workers
    )
    engine = TorchEngine(model, config.optimizer, rates=method.learning_rates())
    lines = []
    for update, batch in enumerate(batches):
        engine.set_learning_rate(config.optimizer.rate_at(update, updates))
        model.train()
        with ExitStack() as scope:
            enter = partial(scope.enter_context, method.select(model, batch))
            outputs, selection = engine.forward(batch, enter)
            loss = method.loss(model, batch, outputs, selection)
            engine.backward(loss.total)
        assert method.step(engine)
        lines.append(
            f"{name} update {update + 1} loss {float(loss.total.detach()):.9g} grad_norm {engine.grad_norm:.9g}"
            f" rows {','.join(batch.sample_ids)} slots {slots_text(selection.slots)}"
        )
    engine.close()
    method.end_task(engine, info, iter(batches))
    return lines


@torch.no_grad()
def scored_lines(config: RunConfig, scheduled: ScheduledTask, method: Method, model: Backbone) -> Iterator[str]:
    """What serves a learned task's rows in evaluation, in their stored order, and their loss."""
    model.eval()
    with method.test_file(instructions_of(scheduled)):
        for batch in batches_of(scheduled, config, seed=None):
            with method.select(model, batch) as selection:
                loss = float(method.loss(model, batch, model(batch), selection).total)
            served = ",".join(selection.routed_to or ["-"])
            rows = ",".join(batch.sample_ids)
            yield f"{scheduled.task.name} loss {loss:.9g} rows {rows} by {served} slots {slots_text(selection.slots)}"


def batches_of(scheduled: ScheduledTask, config: RunConfig, *, seed: int | None) -> Iterator[Batch]:
    """The batches of every update in the order of a run with that seed; None: one pass in stored order."""
    num_rows = scheduled.num_rows if seed is None else scheduled.num_updates * BATCH
    epochs = 1 if seed is None else scheduled.num_epochs(BATCH)
    windows = plan_windows(scheduled.splits, epochs=epochs, num_rows=num_rows, seed=seed)
    loader = Loader(splits=scheduled.splits, backbone=config.backbone, mode="train", slice=Slice(), num_rows=num_rows)
    rows = [
        example
        for table in loader({"stretch": np.array(stretches_of(windows), dtype=object)})
        for example in examples(table.to_pylist())
    ]
    for start in range(0, len(rows), BATCH):
        yield collate(rows[start : start + BATCH], pad_id=encoder_for(config.backbone).pad_id, padding_side="right")


def instructions_of(scheduled: ScheduledTask) -> list[str]:
    return [row.instruction for split in scheduled.splits for row in split.rows(with_image=False)]


def slots_text(slots: torch.Tensor | None) -> str:
    """Of every row its slots in rising order: of equally near ones either may come first."""
    return "-" if slots is None else "|".join(",".join(map(str, sorted(row))) for row in slots.tolist())


def differences(expected: list[str], found: list[str]) -> list[str]:
    """The lines that differ in their words, or in a number by more than rounding."""
    return [f"- {old}\n+ {new}" for old, new in zip_longest(expected, found, fillvalue="") if not same_line(old, new)]


def same_line(old: str, new: str) -> bool:
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return False
    pairs = zip(map(float, NUMBER.findall(old)), map(float, NUMBER.findall(new)), strict=True)
    return all(math.isclose(*pair, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for pair in pairs)


def golden_file(method: str) -> Path:
    return FOLDER / f"{method}.txt"


def main() -> None:
    for method in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            lines = golden_lines(golden_config(method), Path(folder))
        golden_file(method).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{golden_file(method)}: {len(lines)} lines")


if __name__ == "__main__":
    main()
