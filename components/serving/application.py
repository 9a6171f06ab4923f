"""The service as a Ray Serve application: replicas, the desk that tells them what to answer with, start and end."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import ray
import ray.serve._private.constants as constants
import ray.serve._private.replica as ray_replica
import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from components.core.errors import ConfigError, LittoralError
from components.core.location import Location
from components.core.ray_session import ray_session
from components.core.ray_watch import Look, left_ray
from components.core.visible import print_text
from components.models.config import BackboneConfig
from components.serving.desk import Desk
from components.serving.metrics import Family, Metrics
from components.serving.options import Batching, Limits
from components.serving.plan import Place, Plan
from components.serving.schema import Wanted
from components.serving.service import Service
from components.serving.shelf import Shelf
from components.serving.web import Guard, Web
from components.training.precision import set_float32_products

logger = logging.getLogger("littoral.serving")
DeskHandle = Any  # of an actor; Ray's own types know its methods only where it is made
LOOK_EVERY_S = 1.0  # how often a replica asks the desk
LOOK_AT_END_S = 0.1
NAME = "littoral"
# Threads that wait for each other sleep: where they spin on a busy machine, a reply takes fifty times as long.
QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
# Of Ray Serve, where this command starts Ray: nothing here blocks an event loop, so one thread less hands requests on.
ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
NO_ACCESS_LOG = LoggingConfig(enable_access_log=False)  # /metrics counts, and a line costs as much as a small request
SENT_S = 1.0  # for Ray's proxy to send on what replicas have answered
DRAIN_S = 10.0  # beyond a request's own time, for what is inside when a replica is told to end


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a replica needs. It goes through Ray, so it holds digests and no keys."""

    storage: Path | Location
    run: str
    backbone: BackboneConfig
    limits: Limits
    batching: Batching
    guard: Guard
    shadow_log: Path | None
    threads: int
    name: str  # what requests ask for: that of the registered model, or of the run


class Replica:
    """One replica: a model, its queue and the web in front of them. Its HTTP requests come from Ray Serve's proxy."""

    def __init__(self, setting: Setting, desk: DeskHandle) -> None:
        only_loopback()
        gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        if not gpu:
            torch.set_num_threads(setting.threads)
        self.setting, self.desk = setting, desk
        self.replica = serve.get_replica_context().replica_id.unique_id
        device = torch.device("cuda" if gpu else "cpu")
        set_float32_products(setting.backbone, device)  # as in evaluation
        self.shelf = Shelf(setting.storage, setting.backbone, device)
        self.number, plan = ray.get(desk.get.remote())
        self.service = Service(
            plan,
            self.shelf.load,
            limits=setting.limits,
            batching=setting.batching,
            metrics=Metrics(self.replica),
            shadow_log=setting.shadow_log,
            name=setting.name,
        )
        self.web = Web(self.service, self, setting.guard, beside=self._follow)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray Serve sends requests to."""
        return self.web.app

    async def change(self, wanted: Wanted) -> Plan:
        """Load what is wanted, answer with it, and have the other replicas do so, too."""
        plan = await asyncio.to_thread(self.shelf.plan, self.setting.run, wanted)
        await self.service.swap(plan)
        self.number = await self.desk.put.remote(plan, self.number)
        return plan

    async def families(self) -> list[Family]:
        """Figures of all replicas."""
        self.service.metrics.inside.set(self.service.inside)
        self.service.metrics.waiting.set(self.service.batcher.waiting)
        own, others = self.service.metrics.families(), []
        with suppress(RayError):
            others = await self.desk.others.remote(self.replica)
        return [*own, *others]

    async def _follow(self) -> None:
        """Answer by the desk's plan, whichever replica or command put it there."""
        while True:
            try:
                families, known = self.service.metrics.families(), self.service.plan
                inside = self.service.inside if self.service.ending else None
                number, plan, self.service.ending = await self.desk.exchange.remote(
                    self.replica, families, self.number, known, inside
                )
                if number > self.number:
                    await self.service.swap(plan)
                    self.number = number
            except (RayError, LittoralError, OSError) as error:
                logger.warning("this replica goes on with %s: %s", self.service.plan.primary, error)
            await asyncio.sleep(LOOK_AT_END_S if self.service.ending else LOOK_EVERY_S)

    def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        if not self.service.batcher.alive:
            raise RuntimeError("the model's thread has ended")


def only_loopback() -> None:
    """Bind this replica's port for other deployments to loopback, before Ray Serve opens it.

    Ray Serve 2.60 opens it on every interface, without a key, for pickled requests: whoever reached it could run any
    program. Nothing uses it unless RAY_SERVE_USE_GRPC_BY_DEFAULT is 1; requests come from the proxy as actor calls.
    """
    if constants.RAY_SERVE_USE_GRPC_BY_DEFAULT:
        return
    add = ray_replica.add_port_to_grpc_server  # pyright: ignore[reportPrivateImportUsage]

    def add_on_loopback(server: Any, address: str) -> int:  # Any: a server of grpc
        return add(server, address.replace("[::]:", "127.0.0.1:"))

    ray_replica.add_port_to_grpc_server = add_on_loopback  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the service runs, and where it listens."""

    address: str | None
    host: str
    port: int
    replicas: int
    gpus: float  # of each replica


@contextmanager
def serving(plan: Plan, setting: Setting, placement: Placement, *, debug: bool) -> Iterator[DeskHandle]:
    """Serve until the scope ends; gives the desk. Then requests that are inside are answered, and no others are taken.

    Raises `ConfigError` where Ray does not start, its Serve is in use, or a replica does not come up.
    """
    for name, value in ONE_LOOP.items():
        os.environ.setdefault(name, value)
    with ray_session(placement.address, num_workers=placement.replicas):
        logging.getLogger("ray.serve").setLevel(logging.INFO if debug else logging.ERROR)
        if NAME in serve.status().applications:
            raise ConfigError(
                "another `littoral serve` is served by this Ray cluster; end it first, or start another Ray."
            )
        desk = ray.remote(num_cpus=0, max_restarts=-1)(Desk).remote(plan)
        try:  # it answers before it has started as a whole
            _start(setting, placement, desk)
            yield desk
        finally:
            if not left_ray():
                ended = False
                with suppress(RayError):
                    ended = _let_end(desk, setting.limits.seconds + DRAIN_S)
                with suppress(RayError, RayServeException):
                    if ended:
                        time.sleep(SENT_S)
                    else:
                        serve.delete(NAME)  # waits for what is inside, while Ray's proxy says 404 to what comes
                    serve.shutdown()  # of the proxy first


def _start(setting: Setting, placement: Placement, desk: DeskHandle) -> None:
    http = {"host": placement.host, "port": placement.port}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=NO_ACCESS_LOG)
    limits, rows = setting.limits, setting.batching.rows
    deployment = serve.deployment(
        num_replicas=placement.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": placement.gpus, "runtime_env": {"env_vars": QUIET_THREADS}},
        logging_config=NO_ACCESS_LOG,
        # More than may wait: the replica itself says 429, with a sentence and when to come again.
        max_ongoing_requests=limits.waiting + rows + 64,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=limits.seconds + DRAIN_S,
        health_check_period_s=5,
        max_constructor_retry_count=1,
    )(serve.ingress()(Replica))
    try:
        serve.run(deployment.bind(setting, desk), name=NAME, route_prefix="/")
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-300:]
        raise ConfigError(f"the service does not come up ({reason}); --debug shows Ray's logs.") from error


def _let_end(desk: DeskHandle, most_s: float) -> bool:
    """Wait until what is inside is answered; whether all replicas say that it is. They refuse what comes with 503."""
    until = time.monotonic() + most_s
    ray.get(desk.end.remote())
    while not ray.get(desk.empty.remote()) and time.monotonic() < until:
        time.sleep(LOOK_AT_END_S)
    return bool(ray.get(desk.all_said_so.remote()))


def go_on(desk: DeskHandle, newer: Callable[[], Place | None] | None) -> NoReturn:
    """Until a signal comes. What `newer` gives, asked every second, answers from then on.

    Raises `LostError` when Ray's servers are lost.
    """
    look, pause = Look(), threading.Event()
    while True:
        pause.wait(LOOK_EVERY_S)
        look.again()
        if newer is not None and (place := newer()) is not None:
            number, now = ray.get(desk.get.remote())
            ray.get(desk.put.remote(replace(now, primary=place), number))
            print_text(f"{place} answers from now on", flush=True)
