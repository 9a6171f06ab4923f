"""What a run pays for an object store: waiting for what is put there, as a share of its time.

    python tests/benchmarks/uploading.py [--updates 120] [--every 20] [--latency-ms 5] [--rounds 2]

Two tasks of `pocket` are learned and scored in a folder and in an S3 server behind a proxy that holds each piece of a
request, and of its answer, for as long as a near store takes. Both sides take turns. A checkpoint inside a task costs
what the update after it takes longer than the median one; predictions, records and checkpoints between tasks cost what
the time outside of updates is longer than in a folder.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from local_servers import free_ports, s3_server, wait_until_it_answers  # noqa: E402

from components.core.events import Event, StepDone  # noqa: E402
from components.core.ray_session import ray_session  # noqa: E402
from components.methods import METHODS  # noqa: E402
from components.tracking.config import TrackingConfig  # noqa: E402
from components.training.config import ClusterConfig, RunConfig  # noqa: E402
from components.training.driver import run_stream  # noqa: E402
from components.training.plan import plan_stream  # noqa: E402
from pipelines.presets import pocket  # noqa: E402
from tests.benchmarks.bars import print_bar  # noqa: E402

TASKS = ("iconqa", "docvqa")
PROXY = "proxy"  # the first argument of the process that holds requests


@dataclass(frozen=True, kw_only=True)
class Options:
    """See above."""

    updates: int = 120
    """Of each task."""
    every: int = 20
    """Updates between checkpoints; a run's default is 100."""
    latency_ms: float = 5.0
    """Milliseconds on the way there, and as many on the way back."""
    rounds: int = 2
    """Turns of each side."""


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of one run, from its first update on."""

    whole: float
    at_checkpoints: float  # that updates behind a checkpoint took longer than the median one
    outside: float  # of updates: from the last one of a task to the first one of the next, and to the end


def config_of(storage: str | Path, run_id: str, options: Options) -> RunConfig:
    preset = pocket()
    return replace(
        preset,
        run_id=run_id,
        storage=storage,
        stream=replace(preset.stream, size="nano", order=TASKS, test_limit=16),
        method=METHODS["sequential_lora"].tiny(),
        training=replace(preset.training, updates_per_task=options.updates, checkpoint_every_updates=options.every),
        cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
        tracking=TrackingConfig(enabled=False),
    )


def seconds_of(config: RunConfig, options: Options) -> Seconds:
    """Run the stream."""
    came: dict[tuple[int, int], float] = {}

    def follow(event: Event) -> None:
        if isinstance(event, StepDone):
            came[event.index, event.update] = time.perf_counter()

    run_stream(plan_stream(config), follow)
    end, plain, behind, outside = time.perf_counter(), list[float](), list[float](), 0.0
    for index in range(len(TASKS)):
        times = [came[index, update] for update in range(1, options.updates + 1)]
        gaps = [later - before for before, later in itertools.pairwise(times)]
        for update, gap in enumerate(gaps, start=1):  # the gap behind this update
            (plain if update % options.every else behind).append(gap)
        outside += came.get((index + 1, 1), end) - times[-1]
    usual = statistics.median(plain)
    return Seconds(whole=end - came[0, 1], at_checkpoints=sum(gap - usual for gap in behind), outside=outside)


def main(options: Options) -> None:
    """Print both sides, and the share."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_REGION": "us-east-1"}
    with tempfile.TemporaryDirectory() as made, s3_server(Path(made), "shop") as server:
        (port,) = free_ports(1)
        held = [sys.executable, __file__, PROXY, str(port), str(server), str(options.latency_ms)]
        proxy = subprocess.Popen(held)
        try:
            wait_until_it_answers(port, proxy, Path(made) / "s3.log")
            query = f"?endpoint_override=127.0.0.1:{port}&scheme=http"
            with ray_session(None, num_workers=1):
                folders, stores = list[Seconds](), list[Seconds]()
                for number in range(options.rounds):
                    folders.append(seconds_of(config_of(Path(made), f"r{number}", options), options))
                    stores.append(seconds_of(config_of(f"s3://shop/runs{query}", f"r{number}", options), options))
        finally:
            proxy.terminate()
            proxy.wait()
    hidden, shares = list[float](), list[float]()
    for folder, store in zip(folders, stores, strict=True):
        for name, side in (("folder", folder), ("store", store)):
            print(
                f"{name}: {side.whole:.1f} s; behind checkpoints {side.at_checkpoints:.2f} s longer than the median "
                f"update, outside of updates {side.outside:.2f} s"
            )
        hidden.append((store.at_checkpoints - folder.at_checkpoints) / (store.whole - store.outside))
        shares.append((store.at_checkpoints + store.outside - folder.outside) / store.whole)
    longer = statistics.median(store.outside - folder.outside for folder, store in zip(folders, stores, strict=True))
    why = (
        f"{longer:.1f} s more outside of updates, in {len(TASKS)} tasks and the run's end: a row's files and the kept "
        f"checkpoint are put one after another before the next task; {options.updates} updates of pocket take seconds"
    )
    print_bar("updates behind a checkpoint in a store, longer than in a folder / all updates", hidden, "at most", 0.03)
    print_bar("waiting for an object store / a run's time", shares, "at most", 0.03, why)


# ---- the proxy


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter, latency_s: float) -> None:
    """Hand on each piece as late as it is held, in order, and several at once."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def receive() -> None:
        data = b" "
        while data:
            try:
                data = await source.read(1 << 16)
            except OSError:
                data = b""
            await pieces.put((time.monotonic() + latency_s, data))

    receiving = asyncio.create_task(receive())
    while True:
        due, data = await pieces.get()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        try:
            if not data:
                target.close()
                break
            target.write(data)
            await target.drain()
        except OSError:
            break
    receiving.cancel()


async def _serve(port: int, server: int, latency_s: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", server)
        await asyncio.gather(_forward(reader, ours, latency_s), _forward(theirs, writer, latency_s))

    async with await asyncio.start_server(connected, "127.0.0.1", port) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == [PROXY]:
        asyncio.run(_serve(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]) / 1000))
    else:
        main(tyro.cli(Options, description=__doc__))
