"""Answers per second of a random LLaVA-1.5-7B, and what makes the host wait inside one update."""

from __future__ import annotations

from pathlib import Path

import torch
from proof_model import OPTIMIZER, at_task, task_rows, training_batch, update
from proof_record import Record
from proof_scale import Scale, forget_peak, peak_gib, timed
from proof_steps import random_llava
from torch.profiler import ProfilerActivity, profile

from components.evaluation.generation import answer
from components.training.engine import TorchEngine

# Names of events. The first two kinds stop the host until the card has caught up; on a CPU only PyTorch's own show.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = "aten::_local_scalar_dense"  # a number that Python asks for
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
                        each = [task_rows(llava.encoder, scale, task, -(-size // tasks)) for task in range(tasks)]
                        rows = [row for of_all in zip(*each, strict=True) for row in of_all][:size]
                        prompts = [llava.encoder.prompt_example(row) for row in rows]

                        def reply() -> object:
                            return answer(
                                model,
                                method,
                                llava.encoder,
                                prompts,
                                batch_size=size,
                                max_new_tokens=scale.reply_tokens,
                                device=torch.device(scale.device),
                            )

                        forget_peak(scale)
                        facts["prompt_tokens"] = len(prompts[0].input_ids)
                        facts["new_tokens"] = scale.reply_tokens
                        facts["seconds"] = seconds = timed(reply, scale, repeats=2, warm=1)
                        facts["rows_s"] = size / seconds[0]
                        facts["peak_gib"] = peak_gib(scale)


def waits(record: Record, scale: Scale, folder: Path) -> None:
    """Events of one update, from PyTorch's profiler, by method."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * scale.on_gpu
    with random_llava(record, scale, folder) as llava:
        # On the CPU, as they come from a reader: bringing them to the card belongs to an update.
        batch = training_batch(llava.encoder, scale).to(torch.device("cpu"))
        for name in ("sequential_lora", "continual_llava", "lcia", "moelora"):
            with record.measuring(name, budget_s=40) as facts, llava.backbone() as model:
                method = at_task(model, name, scale, llava.encoder, depth=scale.depth)
                engine = TorchEngine(model, OPTIMIZER, rates=method.learning_rates())
                for _ in range(scale.warm):
                    update(engine, model, method, [batch])
                with profile(activities=activities) as seen:
                    (wall, *_) = timed(lambda: update(engine, model, method, [batch]), scale, repeats=1, warm=0)
                events = seen.key_averages()
                facts["host_waits"] = sum(e.count for e in events if e.key in WAITS) if scale.on_gpu else None
                facts["numbers_read"] = sum(e.count for e in events if e.key == READS)
                facts["data_dependent_sizes"] = sum(e.count for e in events if e.key == SIZES)
                for what, start in (("copies_to_host", TO_HOST), ("copies_to_device", TO_DEVICE)):
                    found = [e for e in events if e.key.startswith(start)]
                    facts[what] = sum(e.count for e in found) if scale.on_gpu else None
                if scale.on_gpu:
                    busy = sum(e.self_device_time_total for e in events) / 1e6
                    facts["idle_share"] = max(0.0, 1 - busy / wall)  # of the step; the profiler itself adds to it
                engine.close()
