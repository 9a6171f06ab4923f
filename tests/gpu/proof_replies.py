"""Answers per second of a random LLaVA-1.5-7B, and what makes the host wait inside one update."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from proof_model import OPTIMIZER, RandomLlava, at_task, task_rows, training_batch, update
from proof_record import Facts, Record
from proof_scale import Scale, forget_peak, peak_gib, timed
from proof_steps import random_llava
from torch.profiler import ProfilerActivity, profile

from components.evaluation.generation import answer
from components.methods.base import Method
from components.models.backbone import Backbone
from components.training.engine import TorchEngine

# Names of events. Those of CUDA stop the host until the card has caught up; on a CPU only PyTorch's own show.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
READS = "aten::_local_scalar_dense"  # a number that Python asks for; on the CPU, as AdamW's step counts are, it is free
SIZES = "aten::nonzero"  # a tensor whose size depends on data
TO_HOST, TO_DEVICE = "Memcpy DtoH", "Memcpy HtoD"


def evaluation(record: Record, scale: Scale, folder: Path) -> None:
    """Rows a second by batch size, with one adapter for all and with rows of all tasks that a method routes."""
    with random_llava(record, scale, folder) as llava:
        for name, tasks in (("sequential_lora", 1), ("continual_llava", scale.depth)):
            with llava.backbone() as model:
                method = at_task(model, name, scale, llava.encoder, depth=tasks)
                for size in scale.reply_batches:
                    what = f"{name}, rows of {tasks} task{'s' * (tasks > 1)}, batch {size}"
                    with record.measuring(what, budget_s=40) as facts:
                        _time_replies(facts, llava, model, method, tasks=tasks, size=size)


def _time_replies(facts: Facts, llava: RandomLlava, model: Backbone, method: Method, *, tasks: int, size: int) -> None:
    """One batch of `size` rows, as evenly of all tasks as can be, answered as a worker answers it."""
    scale, encoder = llava.scale, llava.encoder
    each = [task_rows(encoder, scale, task, -(-size // tasks)) for task in range(tasks)]
    prompts = [encoder.prompt_example(row) for of_all in zip(*each, strict=True) for row in of_all][:size]
    device = torch.device(scale.device)

    def reply() -> None:
        new = scale.reply_tokens
        answer(model, method, encoder, prompts, batch_size=size, max_new_tokens=new, device=device)

    forget_peak(scale)
    facts["prompt_tokens"] = len(prompts[0].input_ids)
    facts["new_tokens"] = scale.reply_tokens  # at most: a model of random weights hardly ever ends an answer
    facts["seconds"] = seconds = timed(reply, scale, repeats=2, warm=1)
    facts["rows_s"] = size / seconds[0]
    facts["peak_gib"] = peak_gib(scale)


def waits(record: Record, scale: Scale, folder: Path) -> None:
    """Events of one update, from PyTorch's profiler, by method."""
    with random_llava(record, scale, folder) as llava:
        for name in ("sequential_lora", "continual_llava", "lcia", "moelora"):
            with record.measuring(name, budget_s=40) as facts, llava.backbone() as model:
                _count_waits(facts, llava, model, at_task(model, name, scale, llava.encoder, depth=scale.depth))


def _count_waits(facts: Facts, llava: RandomLlava, model: Backbone, method: Method) -> None:
    scale = llava.scale
    engine = TorchEngine(model, OPTIMIZER, rates=method.learning_rates())
    batch = training_batch(llava.encoder, scale)

    def step() -> None:
        update(engine, model, method, [batch])

    for _ in range(scale.warm):
        step()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * scale.on_gpu) as seen:
        started = time.perf_counter()
        step()
        if scale.on_gpu:
            torch.cuda.synchronize()  # another kind of event than those that are counted
        wall = time.perf_counter() - started
    engine.close()
    events = seen.key_averages()
    facts["numbers_read"] = sum(event.count for event in events if event.key == READS)
    facts["data_dependent_sizes"] = sum(event.count for event in events if event.key == SIZES)
    if not scale.on_gpu:
        return
    facts["host_waits"] = sum(event.count for event in events if event.key in WAITS)
    for what, start in (("copies_to_host", TO_HOST), ("copies_to_device", TO_DEVICE)):
        facts[what] = sum(event.count for event in events if event.key.startswith(start))
    # An operator's entry repeats the time of its kernels, and so does a range that a library has named.
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    kernels = [event for event in kernels if not getattr(event, "is_user_annotation", False)]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    facts["idle_share"] = max(0.0, 1 - busy / wall)  # of the step; the profiler itself adds to it
