"""What a method costs, measured by running it: three tasks of made-up rows on a real backbone, in this process."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from components.data.batch import IGNORE, Batch, Example, Picture, collate
from components.methods.base import Method, MethodConfig, TaskInfo
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.families.base import FEATURES
from components.training.engine import TorchEngine, mean_over_workers, trainable_parameters
from components.training.optimizer import OptimizerConfig

BATCH, PROMPT, ANSWER = 2, 6, 2  # rows, and tokens of each half of a row
PICTURE = 2  # visual tokens, the first of the prompt
# As unlike as tasks get, so that a method that groups them grows the most.
INSTRUCTIONS = ("Which bar is the highest?", "Read the date field.", "Name the organ shown in this scan.")


@dataclass(frozen=True, kw_only=True)
class MethodCost:
    """Counted over three tasks, so that what a method keeps of earlier ones is in place."""

    trainable: int  # parameters that train, most in any task
    total: int  # parameters the method has added
    growth: int  # parameters that one more task adds at most: the tasks have nothing in common
    forward_passes: int  # of the language model, per update, most in any task


def measure_cost(config: MethodConfig, backbone: BackboneConfig) -> MethodCost:
    """Teach three tasks in one update each, and count."""
    model = load_backbone(backbone)
    method = config.build(seed=0)
    method.attach(model, None)
    totals, learned = [], []
    for index in range(len(INSTRUCTIONS)):
        learned.append(_learn(method, model, index))
        totals.append(sum(parameter.numel() for parameter in method.parameters().values()))
    return MethodCost(
        trainable=max(trainable for trainable, _ in learned),
        total=totals[-1],
        growth=totals[2] - totals[1],
        forward_passes=max(passes for _, passes in learned),
    )


def _learn(method: Method, model: Backbone, index: int) -> tuple[int, int]:
    """One task of one update: its trainable parameters and the update's forward passes."""
    task = TaskInfo(index=len(method.tasks), name=f"task {index}", instructions=[INSTRUCTIONS[index]])
    learns = method.is_trainable and not (method.config.data_scope == "first" and index)
    if not learns:
        return 0, 0
    method.begin_task(model, task)
    batch = _batch(index, task.name, model)
    method.calibrate(model, task, iter([batch]), mean_over_workers)
    engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-4))
    calls: list[int] = []
    hook = model.language_model.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    with ExitStack() as scope:
        outputs, selection = engine.forward(batch, partial(scope.enter_context, method.select(model, batch)))
        engine.backward(method.loss(model, batch, outputs, selection).total)
    method.step(engine)
    hook.remove()
    trainable = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    engine.close()
    method.end_task(engine, task, iter([batch]))
    return trainable, len(calls)


def _batch(index: int, task: str, model: Backbone) -> Batch:
    """Made-up rows with a picture: counting needs no sense, only shapes."""
    generator = torch.Generator().manual_seed(index)
    rows = []
    for number in range(BATCH):
        ids = torch.randint(5, 60, (PROMPT + ANSWER,), generator=generator)
        labels = torch.where(torch.arange(len(ids)) < PROMPT, torch.tensor(IGNORE), ids)
        ids[:PICTURE] = model.family.image_token_id
        features = torch.randn(PICTURE, model.picture_width, generator=generator).to(next(model.parameters()).dtype)
        rows.append(
            Example(
                sample_id=str(number),
                instruction=INSTRUCTIONS[index],
                input_ids=ids,
                labels=labels,
                pictures=(Picture(tensors={FEATURES: features}, num_tokens=PICTURE),),
            )
        )
    batch = collate(rows, pad_id=0, padding_side="right")
    return Batch(**{**vars(batch), "oracle_task": task})
