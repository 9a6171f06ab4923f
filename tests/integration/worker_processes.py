"""Worker processes without Ray: every rank of a gloo group works through the same jobs, one after another."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Imported once, in the process that workers are forked from; not DeepSpeed, which reads variables as it is imported.
IMPORTED = ("components.methods.sequential_lora", "components.models.backbone", "components.training.optimizer")
JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


def results_of(
    work: Callable[[JobT, int], ResultT], jobs: Sequence[JobT], *, world_size: int
) -> dict[JobT, list[ResultT]]:
    """By job: what `work(job, rank)` returned on every rank, in the order of the ranks.

    All jobs share the processes, because importing takes longer than a job. `work` is a function of a module.
    """
    context, port = mp.get_context("forkserver"), free_port()
    context.set_forkserver_preload([*IMPORTED])
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(work, jobs, rank, world_size, port, results), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found: dict[JobT, dict[int, ResultT]] = defaultdict(dict)
    while not (whole := sum(map(len, found.values())) == len(jobs) * world_size):
        while not results.empty():
            job, rank, result = results.get()
            found[job][rank] = result
        if any(process.exitcode for process in processes):
            break
        time.sleep(0.05)
    for process in processes:
        process.join(timeout=60 if whole else 5)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.terminate()
    unfinished = next((job for job in jobs if len(found[job]) < world_size), None)
    assert unfinished is None, f"workers ended with {codes} in {unfinished}"
    assert codes == [0] * world_size
    return {job: [result for _, result in sorted(ranks.items())] for job, ranks in found.items()}


def _work(
    work: Callable[[JobT, int], ResultT],
    jobs: Sequence[JobT],
    rank: int,
    world_size: int,
    port: int,
    results: mp.SimpleQueue[Any],
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    # A job that a worker leaves the others waiting in fails after this long.
    dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=240))
    for job in jobs:
        gc.freeze()  # DeepSpeed and our engine collect garbage at both ends of a task; the libraries are none
        results.put((job, rank, work(job, rank)))
    dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
