"""What throughput.py times: our training step in several set-ups, and a bare PyTorch + peft loop on the same data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

from components.data.batch import IGNORE, Example, collate
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.data.tasks import Task
from components.methods.base import Method, MethodConfig, TaskInfo
from components.methods.continual_llava import ContinualLlavaConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.training.engine import DeepSpeedEngine, Engine, TorchEngine
from components.training.optimizer import OptimizerConfig
from tests.pictures import cached, pixels_of

RANK, ALPHA = 32, 64.0  # LoRA's rank = Continual LLaVA's active rank: 4 chosen slots of rank 8
OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
BATCH_SIZE = 8

Step = Callable[[Sequence[Example]], float]  # one optimizer update on these samples; returns the loss
EngineName = Literal["torch", "deepspeed"]


class Data:
    """Samples of mini-COAST's domain tasks, encoded once; a batch and a list of prompts hold rows of one task."""

    def __init__(self, config: BackboneConfig, *, num_batches: int, num_prompts: int, extra_tokens: int = 0) -> None:
        self.encoder: Encoder = build_encoder(config)
        tower = load_backbone(config)
        self.tasks = open_stream(StreamConfig(size="nano")).tasks
        self.pixels: list[list[Example]] = []
        self.features: list[list[Example]] = []
        training = [list(task.train.rows()) for task in self.tasks]
        for index in range(num_batches):
            rows = training[index % len(training)]
            start = index // len(training) * BATCH_SIZE % len(rows)
            chosen = rows[start : start + BATCH_SIZE]
            self.pixels.append([self.encoder.training_example(row) for row in chosen])
            self.features.append([_with_features(example, tower) for example in self.pixels[-1]])
        count = num_prompts // len(self.tasks)
        self.prompts = [self._prompts(task, tower, count, extra_tokens) for task in self.tasks]

    def _prompts(self, task: Task, tower: Backbone, count: int, extra_tokens: int) -> list[Example]:
        """The first test rows of a task, with cached vision features, behind `extra_tokens` copies of the first one."""
        rows = list(task.test.rows(limit=count))
        prompts = [_with_features(self.encoder.prompt_example(row), tower) for row in rows]
        return [lengthened(prompt, extra_tokens) for prompt in prompts]

    def task_info(self, index: int) -> TaskInfo:
        task = self.tasks[index]
        instructions = [row.instruction for row in task.train.rows(with_image=False)]
        return TaskInfo(index=index, name=task.name, instructions=instructions)


def lengthened(prompt: Example, extra: int) -> Example:
    ids, labels = prompt.input_ids, prompt.labels
    return replace(
        prompt,
        input_ids=torch.cat([ids[:1].expand(extra), ids]),
        labels=torch.cat([torch.full((extra,), IGNORE), labels]),
    )


def lora_config() -> SequentialLoraConfig:
    """Plain LoRA on the attention output, the placement Continual LLaVA uses."""
    return SequentialLoraConfig(rank=RANK, alpha=ALPHA)


def continual_config(backbone: str) -> ContinualLlavaConfig:
    """The method's defaults; only the key alignment before a task, which is not timed, is cut short."""
    encoder = "hash" if backbone == "pocket" else "minilm"
    config = ContinualLlavaConfig(sentence_encoder=encoder, alignment_min_updates=30)
    assert config.top_m * config.rank == RANK
    return config


def adapted(config: MethodConfig, backbone: BackboneConfig, data: Data, *, task: int) -> tuple[Backbone, Method]:
    """A model with the method's adapters at the start of 0-based `task`; the tasks before it count as learned.

    A task past the last one: all are learned, none is begun.
    """
    model = load_backbone(backbone)
    method = config.build(seed=0)
    method.attach(model, None)
    for index in range(task):
        method.begin_task(model, data.task_info(index))
        batch = collate(data.features[index], pad_id=data.encoder.pad_id, padding_side="right")
        method.end_task(TorchEngine(model, OPTIMIZER), data.task_info(index), iter([batch]))
    if task < len(data.tasks):
        method.begin_task(model, data.task_info(task))
    return model, method


def untrained() -> tuple[Backbone, Encoder, Method]:
    """`smol`, its encoder and LoRA that has learned nothing; from here on this process has one thread."""
    torch.set_num_threads(1)
    config = BackboneConfig(name="smol")
    model, method = load_backbone(config), lora_config().build(seed=0)
    method.attach(model, None)
    return model, build_encoder(config), method


def our_step(
    config: MethodConfig, backbone: BackboneConfig, data: Data, *, engine: EngineName = "torch", task: int = 0
) -> Step:
    """What a training worker does with a batch, in this process."""
    model, method = adapted(config, backbone, data, task=task)
    driver = build_engine(engine, model)
    pad_id = data.encoder.pad_id

    def step(examples: Sequence[Example]) -> float:
        driver.set_learning_rate(OPTIMIZER.rate_at(0, 1))
        model.train()
        batch = collate(examples, pad_id=pad_id, padding_side="right")
        with ExitStack() as scope:
            outputs, selection = driver.forward(batch, partial(scope.enter_context, method.select(model, batch)))
            loss = method.loss(model, batch, outputs, selection)
            driver.backward(loss.total)
        assert method.step(driver)
        return float(loss.total.detach())

    return step


def build_engine(name: EngineName, model: Backbone) -> Engine:
    if name == "torch":
        return TorchEngine(model, OPTIMIZER)
    if not dist.is_initialized():
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return DeepSpeedEngine(model, OPTIMIZER, zero_stage=2, micro_batch_size=BATCH_SIZE)


def bare_step(backbone: BackboneConfig, data: Data, *, supervised_logits: bool) -> Step:
    """The same Hugging Face model under peft's LoRA and torch's AdamW, as a person would write it without Littoral.

    The model is called with `labels`, so logits are computed at every position; `supervised_logits` computes them only
    where there is a label, which is what our backbone does.
    """
    model: nn.Module = load_backbone(backbone).model
    options = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=r".*language_model.*\.self_attn\.o_proj")
    peft_model = get_peft_model(model, options)  # type: ignore[arg-type]
    inner = peft_model.get_base_model()
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=OPTIMIZER.rate_at(0, 1), betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), weight_decay=0.0
    )
    peft_model.train()
    inner.model.vision_tower.eval()
    pad_id = data.encoder.pad_id

    def step(examples: Sequence[Example]) -> float:
        batch = collate(examples, pad_id=pad_id, padding_side="right")
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "pixel_values": pixels_of(batch),
            "use_cache": False,
        }
        if supervised_logits:
            hidden = inner.model(**inputs).last_hidden_state
            targets = batch.labels[:, 1:]
            kept = targets != IGNORE
            loss = F.cross_entropy(inner.lm_head(hidden[:, :-1][kept]).float(), targets[kept])
        else:
            loss = peft_model(**inputs, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _with_features(example: Example, tower: Backbone) -> Example:
    return replace(example, pictures=tuple(cached(each) for each in tower.picture_features(example.pictures)))
