"""A night of `littoral nightly`: from what is in production to a run that is accepted or rejected."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from components.core.errors import BudgetExceeded, ConfigError, TrackingError
from components.core.location import is_uri
from components.core.lock import sole_user
from components.core.naming import id_of
from components.core.run_files import CONFIG_FILE
from components.core.visible import print_text
from components.evaluation.budget import verdict
from components.evaluation.matrix import MATRIX_FILE, ScoreMatrix
from components.exporting.learned import read_learned
from components.runs.gate import accept, read_decision, recorded, reject
from components.tracking.aliases import Reference, Registry, production
from components.tracking.config import TrackingConfig, tracking_uri
from components.training.config import RunConfig
from components.training.lineage import read_origin
from pipelines.cli import taken
from pipelines.learning import learn
from pipelines.origin import with_origin
from pipelines.status import folder_of

if TYPE_CHECKING:
    from pipelines.nightly import Nightly


@dataclass(frozen=True, kw_only=True)
class Night:
    """What is asked for before anything of the run is known."""

    model: Reference
    first: str | None
    storage: Path
    registry: Registry

    @classmethod
    def of(cls, *, model: str, alias: str, first: str | None, storage: str, tracking: str | None) -> Night:
        """Raises `ConfigError` for names that cannot be, and where MLflow has no store."""
        if is_uri(storage):
            raise ConfigError(f"--storage {storage!r:.100} is a URI; nights need a folder that every node sees.")
        folder = Path(storage).expanduser().resolve()
        registry = Registry(TrackingConfig(uri=tracking), folder)
        return cls(model=production(model, alias), first=first, storage=folder, registry=registry)

    def alone(self, *, wait: bool) -> AbstractContextManager[None]:
        """One night at a time: two at once would continue from the same run, and the later one lose the other's task.

        Raises `ConfigError` while another process has one, unless `wait`.
        """
        folder = self.storage / f".nightly-{id_of(self.model.name, self.model.alias or '')}"
        return sole_user(folder, f"a night of {self.model}", wait=print_text if wait else None)

    def spend(self, given: Sequence[str], *, dry: bool = False) -> int:
        """Learn and judge what the arguments say; the exit code. Raises `BudgetExceeded` where the gate refuses."""
        stream, run_id = taken(given, "--stream.name")[1], taken(given, "--run-id")[1]
        added = stream is not None or any(each.startswith("--stream.order") for each in given)
        if added and run_id is None:
            if stream is None:
                raise ConfigError("--run-id is missing, which names the night where no --stream.name does.")
            run_id = id_of(self.model.name, Path(stream).name)
        run_dir = None if run_id is None else self.storage / run_id
        if run_dir is not None and (said := self._said(run_dir)):
            print_text(said)
            return 0
        beside_json = sys.stderr if "--print-config" in given else None
        folder, learned = self._beginning(run_dir, dry=dry, say_to=beside_json)
        if not added or run_dir is None:
            print_text("no tasks were named, so nothing is learned; --stream.name or --stream.order names some")
            return 0
        command = self._read(given, run_dir, folder, learned)
        if command.print_config:
            print_text(json.dumps(command.run.to_json(), indent=2))
            return 0
        return self._learned(command, run_dir, folder)

    def _said(self, run_dir: Path) -> str:
        """How the night ended, if nothing is left to do. A rejected run may be accepted under another budget."""
        decision = read_decision(run_dir)
        if decision is None or decision.gate == "rejected" or decision.model != str(self.model):
            return ""
        return f"run {run_dir.name} is done: {decision.text()}"

    def _beginning(self, run_dir: Path | None, *, dry: bool, say_to: TextIO | None) -> tuple[Path, int]:
        """The folder of the run to continue from, and how many of its tasks: as the night began, or as it is now."""
        if run_dir is not None and (run_dir / CONFIG_FILE).is_file():
            origin = read_origin(run_dir)
            if origin is None:
                raise ConfigError(f"run {run_dir.name} exists and began without another run; use another --run-id.")
            return Path(origin.folder), origin.at_task
        now = self.registry.find(self.model)
        if now is not None:
            print_text(f"{self.model} is {now}", to=say_to)
            here = self.storage / now.run
            return here if here.is_dir() else Path(now.storage) / now.run, now.learned
        if self.first is None:
            raise ConfigError(f"{self.model} names nothing yet; give --first RUN, the run that goes into production.")
        folder = Path(str(folder_of(self.first, self.storage))).resolve()
        learned = read_learned(folder, None, None)
        if dry:
            checkpoint = f"{folder.name}/{learned.number:02d}-{learned.task}"
            print_text(f"{self.model} names nothing yet; {checkpoint} would go into production", to=say_to)
        else:
            version = self.registry.add(self.model.name, recorded(folder), learned.number, "the first one")
            self.registry.move(self.model, version.version)
            print_text(f"{self.model} is {version} from now on")
        return folder, learned.number

    def _read(self, given: Sequence[str], run_dir: Path, folder: Path, learned: int) -> Nightly:
        """The whole command; raises `ConfigError` where it has no gate, or is recorded elsewhere."""
        from pipelines.nightly import read

        rest = [*given, "--continue-from", str(folder), "--at-task", str(learned)]
        for flag, value in {"--run-id": run_dir.name, "--storage": str(self.storage)}.items():
            rest = [*taken(rest, flag)[0], flag, value]
        command = read(with_origin(rest)[0])
        config = command.run
        if config.evaluation.max_forgetting is None:
            raise ConfigError("--max-forgetting is missing: how many points earlier tasks may lose to a new one.")
        if not config.tracking.enabled:
            raise ConfigError("tracking.enabled is off, and a night registers what it learns; leave it on.")
        if tracking_uri(config.tracking, self.storage) != self.registry.uri:
            raise ConfigError(
                f"run {folder.name} is recorded in another MLflow store than this command looks into; give its "
                "--tracking.uri."
            )
        # The gate is nothing but this: a run that forgets too much must not be the newest of its folder.
        evaluation = replace(config.evaluation, on_forgetting="rollback")
        return replace(command, run=replace(config, evaluation=evaluation))

    def _learned(self, command: Nightly, run_dir: Path, folder: Path) -> int:
        try:
            learn(command.run, command, folder)
        except BudgetExceeded:
            reason = verdict_of(command.run, run_dir)
            try:
                reject(self.registry, self.model, run_dir, reason)
            except TrackingError as error:
                print_text(f"Warning: {error}")
            print_text(f"rejected: {self.model} stays as it is; {run_dir / 'gate.json'} says why")
            raise
        if command.dry_run:
            return 0
        version = accept(self.registry, self.model, run_dir, verdict_of(command.run, run_dir))
        print_text(f"accepted: {self.model} is {version} from now on")
        return 0


def verdict_of(config: RunConfig, run_dir: Path) -> str:
    """What the budget for forgetting says of the run's last row."""
    found = verdict(ScoreMatrix.read(run_dir / MATRIX_FILE), config.evaluation.budget)
    return "nothing earlier was scored a second time" if found is None else found.text()
