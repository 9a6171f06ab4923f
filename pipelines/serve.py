"""Answer questions with what a run has learned, by OpenAI's chat completions, on Ray Serve.

    littoral serve runs/first
    littoral serve runs/first --task 3 --traffic.canary 4
    littoral serve runs/first --watch --host 0.0.0.0 --api-key-file key
    littoral serve models:/shop@production --watch

Requests are answered together, whichever tasks' parameters serve them. After Ctrl-C and SIGTERM those that are inside
are still answered.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("serve"))

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro
from pydantic import Field

from components.core.errors import ConfigError
from components.core.location import Place, folder_at
from components.core.machine import usable_cpus
from components.core.options import Count, NonNegative, check_options
from components.core.visible import print_text
from components.serving.keys import ADMIN_KEY, API_KEY, is_loopback, read_key, require_guard
from components.serving.options import Batching, Limits, Traffic
from pipelines.littoral import importing, read_options

if TYPE_CHECKING:
    from components.tracking.aliases import Reference, Registered, Registry


@dataclass(frozen=True, kw_only=True)
class Serve:
    """What is served, where, and to whom."""

    run: Annotated[str, tyro.conf.Positional]
    run: Annotated[str, tyro.conf.Positional]
    """The folder of a run (STORAGE/RUN-ID), a path or a URI such as s3://bucket/runs/first, finished or not, or a
    registered model: models:/NAME@ALIAS."""
    task: str | None = None
    """After which learned task: its name or its number from 1; without it after the last one."""
    watch: bool = False
    """Go over to each further task of the run as soon as it is learned and scored, or to what the alias names."""
    storage: Path | None = None
    """For a registered model: where its runs are, if not where they were when they were registered."""
    tracking_uri: str | None = None
    """For a registered model: MLflow's store; without it MLFLOW_TRACKING_URI, or the sqlite file in --storage."""
    host: str = "127.0.0.1"
    """Where to listen; anything but loopback needs an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """The port to listen on."""
    api_key_file: Path | None = None
    """A private file with the key that requests must send; without it, $LITTORAL_API_KEY, and without that no key."""
    admin_key_file: Path | None = None
    """A private file with the key that changes what is served, at /admin/serving; without it, $LITTORAL_ADMIN_KEY."""
    traffic: Traffic = field(default_factory=Traffic)
    shadow_log: Path | None = None
    """A file of JSON lines that the shadow's replies are added to, each with whether it is equal to what was sent."""
    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)
    backbone: str | None = None
    """Where the base weights are now (a directory or hub id), if not where the run found them."""
    replicas: Count = 1
    """Processes that answer, each with its own copy of the model."""
    num_gpus: NonNegative = 0
    """GPUs of each replica; 0 computes on CPUs."""
    address: str | None = None
    """A Ray cluster to serve on; without it, that of a submitted job, or a Ray of its own."""
    debug: bool = False
    """Show Ray's logs, and tracebacks instead of one sentence."""

    def __post_init__(self) -> None:
        check_options(self, "serve")
        if self.traffic.shadow is not None and self.shadow_log is None:
            raise ConfigError("--traffic.shadow needs --shadow-log FILE, where its replies are noted.")
        if self.shadow_log is not None and not self.shadow_log.expanduser().parent.is_dir():
            raise ConfigError(f"--shadow-log {self.shadow_log} is in no folder; make that, or give another file.")
        if not self.run.startswith("models:/") and (self.storage, self.tracking_uri) != (None, None):
            raise ConfigError("--storage and --tracking-uri are for models:/NAME@ALIAS; a run's folder says both.")


def main(arguments: Sequence[str]) -> NoReturn:
    """Check everything that can be checked, start, say where, wait for a signal."""
    command = read_options(Serve, arguments, name="serve", description=__doc__)
    api_key, admin_key = read_key(command.api_key_file, API_KEY), read_key(command.admin_key_file, ADMIN_KEY)
    require_guard(command.host, api_key)
    require_free(command.host, command.port)
    alias = Alias.of(command) if command.run.startswith("models:/") else None
    folder = folder_at(command.run) if alias is None else alias.folder
    task = command.task if alias is None else str(alias.now.learned)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which libraries import, would say what it guesses
    with importing():
        import torch

        from components.exporting.learned import read_learned
        from components.serving.checks import require_servable
        from components.serving.schema import Wanted
        from components.serving.shelf import Shelf, placed
        from components.serving.watching import Follower, Watcher
        from components.serving.web import Guard
    learned = read_learned(folder, task, command.backbone)
    require_servable(learned)
    shelf = Shelf(folder.parent, learned.config.backbone, torch.device("cpu"))
    traffic = command.traffic
    wanted = Wanted(
        serve=str(placed(learned).number),
        canary=traffic.canary,
        canary_share=traffic.canary_share,
        shadow=traffic.shadow,
        shadow_share=traffic.shadow_share,
    )
    plan = shelf.plan(folder.name, wanted)
    if alias is not None:
        plan = replace(plan, primary=shelf.registered(alias.now))
    with importing():
        from components.serving.application import Placement, Setting, go_on, serving
    setting = Setting(
        storage=folder.parent,
        run=folder.name,
        backbone=shelf.backbone,
        limits=command.limits,
        batching=command.batching,
        guard=Guard(api_key=api_key, admin_key=admin_key, local=is_loopback(command.host)),
        shadow_log=None if command.shadow_log is None else command.shadow_log.expanduser().absolute(),
        threads=max(1, usable_cpus() // command.replicas),
        name=folder.name if alias is None else alias.now.name,
    )
    placement = Placement(
        address=command.address,
        host=command.host,
        port=command.port,
        replicas=command.replicas,
        gpus=command.num_gpus,
    )
    with serving(plan, setting, placement, debug=command.debug) as desk:
        shown = "127.0.0.1" if command.host in ("0.0.0.0", "::") else command.host
        print_text(
            f"{plan.primary} ({learned.config.method.name}) answers at http://{shown}:{command.port}/v1", flush=True
        )
        print_text(f"  to try it: http://{shown}:{command.port}/    to end it: Ctrl-C", flush=True)
        newer = None
        if command.watch:
            newer = Watcher(shelf, folder.name, plan.primary).newer
            if alias is not None:
                newer = Follower(shelf, alias.named, alias.now).newer
        try:
            go_on(desk, newer)
        finally:
            print_text("ending; requests that are inside are still answered", flush=True)


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A registered model that is served, and what it named when the command began."""

    registry: Registry
    reference: Reference
    now: Registered
    folder: Place  # of the run

    @classmethod
    def of(cls, command: Serve) -> Alias:
        """Raises `ConfigError` where it names nothing, or together with what says the same otherwise."""
        from components.tracking.aliases import Reference, Registry
        from components.tracking.config import TrackingConfig

        reference = Reference.parse(command.run)
        if command.task is not None:
            raise ConfigError(f"{reference} says which task is served; leave --task out.")
        if command.watch and reference.alias is None:
            raise ConfigError(f"{reference} is one version, which never moves; give models:/NAME@ALIAS to --watch.")
        storage = (command.storage or Path("runs")).expanduser().resolve()
        registry = Registry(TrackingConfig(uri=command.tracking_uri), storage)
        now = registry.find(reference)
        if now is None:
            raise ConfigError(f"{reference} names nothing in MLflow; `littoral nightly --first RUN` puts a run there.")
        folder = (folder_at(now.storage) if command.storage is None else storage) / now.run
        return cls(registry=registry, reference=reference, now=now, folder=folder)

    def named(self) -> Registered | None:
        """What it names by now."""
        return self.registry.find(self.reference)


def require_free(host: str, port: int) -> None:
    """Raise `ConfigError` where nothing can listen there: Ray Serve would try elsewhere or say it late."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"nothing can listen on {host}:{port} ({error.strerror}); give another --port, or end what listens there."
        ) from error
