"""A served run under load: together against one by one, mixed routes against one route, and whether a request is lost.

    python tests/benchmarks/serving.py [--backbone smol|pocket] [--run RUN] [--minutes 10] [--direct]

Without `--run` it learns two toy tasks first, by Continual LLaVA. It starts `littoral serve` on a free port and asks it
over HTTP, with the tasks' own questions and pictures, from as many clients as `--clients` at once; each asks its next
question when it has its reply (closed loop). All parts ask the same server, in turns, each for `--seconds`:

- **one by one**: a single client. **together**: all of them. Aim: at least 4 times as many requests per second, on two
  cores.
- **one route** against **mixed routes**: all clients ask questions of one task, or each of another one. Aim: at least
  0.9.
- with `--minutes`: all clients with mixed routes for so long. Aim: 0 failed.

Prints requests per second, the median and the 95th percentile of seconds, how many failed (anything but 200), and the
CPU time that replicas, proxy, controller, Ray's other processes and the clients took for a request: where that sums to
as much as the cores have, the machine is full.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import torch
import tyro
import uvicorn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from components.core.machine import usable_cpus  # noqa: E402
from components.data.rows import Row  # noqa: E402
from components.data.streams import open_stream  # noqa: E402
from components.exporting.learned import read_learned  # noqa: E402
from components.methods import method_config  # noqa: E402
from components.models.config import BackboneConfig  # noqa: E402
from components.models.encoding import build_encoder  # noqa: E402
from components.runs.results import read_run  # noqa: E402
from components.serving.metrics import Family, Metrics  # noqa: E402
from components.serving.options import Batching, Limits  # noqa: E402
from components.serving.plan import Plan  # noqa: E402
from components.serving.schema import Wanted  # noqa: E402
from components.serving.service import Service  # noqa: E402
from components.serving.shelf import Shelf  # noqa: E402
from components.serving.web import Guard, Web  # noqa: E402
from tests.benchmarks.bars import print_bar  # noqa: E402
from tests.contract.learned_runs import learned_run  # noqa: E402
from tests.contract.toy_tasks import COLOURS, OPPOSITES, colour_row, opposite_row, toy  # noqa: E402

START_S = 240
AIM_TOGETHER, AIM_MIXED = 4.0, 0.9
KINDS = {"ServeReplica": "replicas", "ProxyActor": "proxy", "ServeController": "controller"}  # by their titles


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked, and for how long."""

    run: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder of a finished run; without it, one is learned on two toy tasks."""
    backbone: str = "pocket"
    """Of the run that is learned: pocket, or smol, whose batches are bound by the cores and not by the calls."""
    clients: int = 16
    """Requests at once."""
    seconds: float = 20.0
    """Seconds of each part."""
    repeats: int = 2
    """How often the parts take turns."""
    tokens: int = 16
    """Tokens of a reply at most."""
    direct: bool = False
    """Leave Ray out: the same service behind uvicorn, in one process."""
    replicas: int = 1
    """Processes that answer."""
    minutes: float = 0.0
    """Minutes of the last part, which looks for lost requests."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a part saw."""

    replies: int
    failed: int
    wall_s: float
    seconds: Sequence[float]
    tokens: int
    cpu_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Replies per second."""
        return self.replies / self.wall_s

    def line(self, name: str) -> str:
        """For people."""
        ordered = sorted(self.seconds) or [float("nan")]
        p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        return (
            f"{name:<14} {self.rate:8.1f} requests/s   p50 {statistics.median(ordered) * 1000:7.1f} ms   "
            f"p95 {p95 * 1000:7.1f} ms   {self.replies} replies of {self.tokens / max(1, self.replies):.1f} tokens, "
            f"{self.failed} failed"
        )

    def cpu_line(self) -> str:
        """CPU milliseconds of a request, by who took them."""
        parts = (f"{kind} {seconds * 1000 / max(1, self.replies):.1f}" for kind, seconds in self.cpu_s.items())
        return f"   CPU ms a request: {', '.join(parts)}"


def learned(folder: Path, backbone: str) -> tuple[Path, dict[str, list[Row]]]:
    """A run of Continual LLaVA on two toy tasks, learned in this process in seconds, and its questions by task.

    After one update replies go on until they are cut, so that a batch of one task is no shorter than a mixed one.
    """
    config = BackboneConfig(name=backbone)
    encoder, pictured = build_encoder(config), [colour_row(name) for name in COLOURS]
    pairs = zip(OPPOSITES, pictured, strict=True)
    rows = {"colours": pictured, "opposites": [opposite_row(word, row.image) for word, row in pairs]}
    toys = [toy(index, name, rows[name], encoder) for index, name in enumerate(rows)]
    method = method_config("continual_llava")()
    return learned_run(folder, method, toys, updates=1, backbone_config=config)[0], rows


def of_stream(run: Path) -> dict[str, list[Row]]:
    """The test rows of a run's stream by task."""
    return {task.name: [*task.test.rows(limit=32)] for task in open_stream(read_run(run).config.stream).tasks}


def bodies(rows: Sequence[Row], model: str, tokens: int) -> list[bytes]:
    """The requests that ask these rows."""
    found: list[bytes] = []
    for row in rows:
        parts: list[dict[str, object]] = [{"type": "text", "text": row.instruction}]
        if row.image is not None:
            url = "data:image/png;base64," + base64.b64encode(row.image).decode()
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        message = {"role": "user", "content": parts}
        found.append(json.dumps({"model": model, "messages": [message], "max_tokens": tokens}).encode())
    return found


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Alone:
    """The control of a service without other replicas."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def change(self, wanted: Wanted) -> Plan:
        """Nothing is changed here."""
        return self.service.plan

    async def families(self) -> list[Family]:
        """Figures of this replica."""
        return self.service.metrics.families()


def serve_directly(run: Path, port: int) -> None:
    """What a replica does, without Ray and its proxy."""
    torch.set_num_threads(usable_cpus())
    shelf = Shelf(run.parent, read_learned(run, None, None).config.backbone, torch.device("cpu"))
    plan = Plan(primary=shelf.newest(run.name))
    service = Service(plan, shelf.load, limits=Limits(), batching=Batching(), metrics=Metrics("direct"))
    uvicorn.run(Web(service, Alone(service), Guard()).app, host="127.0.0.1", port=port, log_level="warning")


@contextmanager
def server(run: Path, port: int, *, direct: bool, replicas: int = 1) -> Iterator[psutil.Process]:
    """`littoral serve` until the scope ends, or the service alone."""
    command = [sys.executable, "-m", "pipelines.littoral", "serve", str(run), "--port", str(port)]
    command += ["--replicas", str(replicas)]
    if direct:
        command = [sys.executable, __file__, "--serve-directly", str(run), str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    try:
        end = time.monotonic() + START_S
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the server does not come up")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def is_ready(port: int) -> bool:
    """Whether requests are answered there."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False


def cpu_seconds(served: psutil.Process) -> dict[str, float]:
    """What the clients, which this process is, and the server's processes have taken so far, by kind."""
    found = {"clients": sum(psutil.Process().cpu_times()[:2])}
    for process in (served, *served.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended
            title = " ".join(process.cmdline())
            kind = next((kind for part, kind in KINDS.items() if part in title), "others")
            found[kind] = found.get(kind, 0.0) + sum(process.cpu_times()[:2])
    return found


def ask(port: int, bodies: Sequence[Sequence[bytes]], seconds: float, served: psutil.Process) -> Seen:
    """A client for each list of bodies, each asking one after another until the time is over."""
    taken: list[float] = []
    failed, tokens = [0], [0]
    lock, cpu_before, started = threading.Lock(), cpu_seconds(served), time.monotonic()

    def client(own: Sequence[bytes]) -> None:
        connection, count = http.client.HTTPConnection("127.0.0.1", port, timeout=300), 0
        while time.monotonic() < started + seconds:
            before, fine = time.monotonic(), False
            try:
                connection.request(
                    "POST", "/v1/chat/completions", own[count % len(own)], {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                content = json.loads(response.read())
                fine = response.status == 200 and bool(content["choices"])
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                connection.close()
            count += 1
            with lock:
                if fine:
                    taken.append(time.monotonic() - before)
                    tokens[0] += content["usage"]["completion_tokens"]
                else:
                    failed[0] += 1

    threads = [threading.Thread(target=client, args=(own,)) for own in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.monotonic() - started
    taken_s = {kind: now - cpu_before.get(kind, 0.0) for kind, now in cpu_seconds(served).items()}
    return Seen(replies=len(taken), failed=failed[0], wall_s=wall_s, seconds=taken, tokens=tokens[0], cpu_s=taken_s)


def shared_out(asked: Sequence[bytes], clients: int) -> list[list[bytes]]:
    """Each client begins at another question."""
    return [[*asked[start:], *asked[:start]] for start in (number * 5 % len(asked) for number in range(clients))]


def main(load: Load) -> None:
    """Serve, ask, print."""
    with tempfile.TemporaryDirectory() as folder:
        run, rows = learned(Path(folder), load.backbone) if load.run is None else (load.run, of_stream(load.run))
        asked = {task: bodies(of_task, run.name, load.tokens) for task, of_task in rows.items()}
        measure(load, run.resolve(), asked)


def measure(load: Load, run: Path, by_task: Mapping[str, list[bytes]]) -> None:
    """All parts on one server."""
    port = free_port()
    mixed = [body for group in zip(*by_task.values(), strict=False) for body in group]
    # One route means one task's questions; the tasks take turns, since their pictures and replies differ in length.
    single = [*by_task.values()]
    with server(run, port, direct=load.direct, replicas=load.replicas) as served:
        ask(port, shared_out(mixed, load.clients), 5.0, served)  # warms up
        ratios: dict[str, list[float]] = {"together": [], "mixed": []}
        failed = 0
        for repeat in range(load.repeats):
            one = ask(port, shared_out(mixed, 1), load.seconds, served)
            many = ask(port, shared_out(mixed, load.clients), load.seconds, served)
            part_s = load.seconds / len(single)
            each = [ask(port, shared_out(asked, load.clients), part_s, served) for asked in single]
            alike = Seen(
                replies=sum(part.replies for part in each),
                failed=sum(part.failed for part in each),
                # The rate of tasks in equal shares, as the mixed ones are: the harmonic mean.
                wall_s=sum(part.replies for part in each) * statistics.mean(1 / part.rate for part in each),
                seconds=[second for part in each for second in part.seconds],
                tokens=sum(part.tokens for part in each),
                cpu_s={kind: sum(part.cpu_s.get(kind, 0.0) for part in each) for kind in each[0].cpu_s},
            )
            for name, seen in {"one by one": one, f"{load.clients} together": many, "one route": alike}.items():
                print(f"{repeat + 1}: {seen.line(name)}\n{seen.cpu_line()}", flush=True)
            ratios["together"].append(many.rate / one.rate)
            ratios["mixed"].append(many.rate / alike.rate)
            failed += one.failed + many.failed + alike.failed
        shared = (
            "of 24 ms of CPU that a request of 16 clients costs in the replica, the model has 42 %; Ray's calls and "
            "encoding have the rest, the proxy 9 ms more, the clients 0.5 (a profile of pocket beside other work)"
        )
        lengths = (
            "a step costs the same for mixed slots; replies that end apart take half again as many passes over "
            "prompts, 0.86 by the model's CPU time in one process (pocket, beside other work)"
        )
        together = f"{load.clients} clients, requests/s against one client"
        print_bar(together, ratios["together"], "at least", AIM_TOGETHER, shared)
        print_bar("mixed routes, requests/s against one route", ratios["mixed"], "at least", AIM_MIXED, lengths)
        if load.minutes:
            lasting = ask(port, shared_out(mixed, load.clients), load.minutes * 60, served)
            print(f"{lasting.line(f'{load.minutes:g} minutes')}\n{lasting.cpu_line()}", flush=True)
            failed += lasting.failed
        print_bar("requests that failed", failed, "at most", 0)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__" and sys.argv[1:2] == ["--serve-directly"]:
    serve_directly(Path(sys.argv[2]), int(sys.argv[3]))
elif __name__ == "__main__":
    main(tyro.cli(Load, description=__doc__))
