"""Run a stream and record it, for a single run and for every trial of a sweep."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress

from components.core.asking import PATIENCE_S
from components.core.errors import ConfigError, StorageError, StreamStopped, TrackingError
from components.core.events import Event, EventHandler, Note, PhaseBegan, RowScored
from components.core.files import write_json
from components.core.last_word import last_word
from components.core.location import Location, Place, patient
from components.core.lock import sole_user
from components.core.ray_session import ray_session
from components.core.reading import read_object
from components.core.run_files import LINK_FILE
from components.core.secrets import without_secrets
from components.evaluation.matrix import MATRIX_FILE
from components.evaluation.replies import noted
from components.models.source import model_source
from components.runs.activity import Activity
from components.runs.costs import Costs
from components.runs.provenance import add_session
from components.runs.records import set_damaged_aside
from components.runs.rows import rows_in
from components.tracking.config import Status, Tracker, dataset_records, recorded_uri, tracking_uri, ui_command
from components.tracking.registry import registered_name
from components.tracking.retry import is_transient
from components.tracking.sender import QueuedTracker, WaitingTracker
from components.tracking.store import open_tracker
from components.tracking.tracker import StreamTracker
from components.training.config import RunConfig, flatten
from components.training.devices import cluster_devices, uses_gpu
from components.training.driver import run_stream
from components.training.local_worker import early_worker
from components.training.needs import Needs, needs_of, require_fit
from components.training.plan import Plan
from components.training.plan_facts import found_in_the_cluster
from components.training.resources import check_resources
from components.training.run_folder import (
    StreamResult,
    changed_execution,
    check_run_dir,
    claim_run_dir,
    learned_in,
    require_same_weights,
)
from components.training.same_run import execution_of, shown
from components.training.space import require_space, saying_what_is_needed

ENDED_WAITING = "error: this process was killed while it waited for MLflow; the run's own files are whole: "


def run_and_record(plan: Plan, follow: EventHandler, *, parent: str | None = None) -> StreamResult:
    """Run (or continue) the stream; its events go to `follow` and to MLflow. `parent` is a sweep's MLflow run.

    Raises `ConfigError` while another process runs it. Downloads and Ray come first: if one fails, nothing is written.
    """
    check_run_dir(plan)
    follow(PhaseBegan(phase="fetching the model"))
    fetch_models(plan.config)
    require_same_weights(plan)
    cluster = plan.config.cluster
    again = f"run the same command with --run-id {plan.run_dir.name} to continue"
    session = ray_session(cluster.address, num_workers=cluster.num_workers, again=again)
    told, needs = _one_at_a_time(follow), needs_of(plan)
    require_space(plan, needs)
    with (
        saying_what_is_needed(plan, needs),
        sole_user(plan.run_dir, f"run {plan.run_dir.name}"),
        Activity(
            plan.run_dir,
            plan.stream.steps,
            plan.num_tasks,
            beside=plan.config.evaluation.beside > 0,
            scored=plan.stream.task_names,
        ) as activity,
    ):
        set_damaged_aside(plan.run_dir, recorded_as, told)
        tracker, costs = Tracker(), Costs.read(plan.run_dir)
        status: Status = "FAILED"

        def handle(event: Event) -> None:
            costs.add(event)
            if isinstance(event, RowScored):  # on disk before anybody hears of the row and reads what it cost
                with suppress(StorageError):  # the workers meet it as well; this is written again at the end
                    costs.write(plan.run_dir)
            activity.handle(event)
            # Before the reader, who must not cost MLflow the event; queueing takes no time.
            tracker.handle(event)
            with suppress(BrokenPipeError, SystemExit):  # nobody reads the output any more; the run is still recorded
                told(event)

        try:
            handle(PhaseBegan(phase="starting Ray"))
            with session:
                on_gpus = check_resources(plan.config)  # before MLflow has a run of it
                require_fit_in_the_session(plan, needs, handle)
                early_worker(plan.config, on_gpus=on_gpus)
                handle(PhaseBegan(phase="opening the MLflow run"))
                tracker = begin_tracking(plan, told, parent=parent)
                take_over_costs(plan, costs)
                for row in rows_taken_over(plan):  # so MLflow has the whole matrix in either run
                    tracker.handle(row)
                result = run_stream(plan, handle)
                status = "FINISHED"
            return result
        except (KeyboardInterrupt, StreamStopped):
            status = "KILLED"
            raise
        finally:
            try:
                # In a store that is gone this fails as well, and what ended the run says more.
                gone = isinstance(plan.run_dir, Location) and status == "FAILED"
                with suppress(StorageError) if gone else nullcontext():
                    if costs != Costs():
                        costs.write(patient(plan.run_dir, PATIENCE_S))  # with the updates since the last row
            finally:
                activity.handle(PhaseBegan(phase="waiting for MLflow, which gets what is left"))
                # After Ray has ended: a slow store keeps neither memory nor a place in the cluster. Still under the
                # run's lock, since another process would send the same events.
                with nullcontext() if parent else last_word(ENDED_WAITING + again):  # a sweep has its own
                    tracker.finish(status)


def require_fit_in_the_session(plan: Plan, needs: Needs, handle: EventHandler) -> None:
    """Raise `ConfigError` where the run does not fit the devices of the Ray session that is open.

    `needs`: from before it was; the devices of a cluster elsewhere were not known then, and are told now.
    """
    found = needs_of(plan)
    require_fit(plan, found)
    if needs.devices.gpus is None:
        handle(Note(text=found_in_the_cluster(plan, found)))


def take_over_costs(plan: Plan, costs: Costs) -> None:
    """Add to the costs of a run that has just continued from another one what its rows until then have cost there."""
    if plan.origin is None or costs.rows or not plan.origin.place.is_dir():
        return
    taken = Costs.read(plan.origin.place).until(plan.origin.rows_of_tasks)
    costs.rows, costs.trainable_parameters = taken.rows, taken.trainable_parameters
    costs.write(plan.run_dir)


def rows_taken_over(plan: Plan) -> Iterable[RowScored]:
    """What a run that continues from another one took over, until it has scored a row of its own; else nothing."""
    if plan.origin is None or not (plan.run_dir / MATRIX_FILE).is_file():
        return ()
    return rows_in(plan.run_dir) if learned_in(plan.run_dir) == plan.origin.rows_of_tasks else ()


def lineage_tags(plan: Plan, tags: Mapping[str, str]) -> dict[str, str]:
    """MLflow tags of a run that continued from another one: that run, its task, and the model it began with."""
    origin = plan.origin
    if origin is None:
        return {}
    found = {
        "continued_from": origin.run,
        "continued_at_task": str(origin.at_task),
        "continued_from_task": origin.tasks[-1],
        "continued_from_checkpoint": origin.checkpoint_there().as_uri(),
        # The version of this model that has the tag tasks_learned with the number above.
        "continued_from_model": registered_name(
            {**tags, "stream": origin.stream_name, "stream_digest": origin.stream_digest}
        ),
    }
    if origin.unlearned is not None:
        found |= {
            "unlearned": origin.unlearned.task,
            "unlearned_traces": origin.unlearned.traces or "none",
            "continued_from_digest": origin.unlearned.digest,
        }
    return found if origin.mlflow_run is None else {**found, "continued_from_run": origin.mlflow_run}


def _one_at_a_time(follow: EventHandler) -> EventHandler:
    """`follow` for several threads: the workers' events come from one, trouble with MLflow from another."""
    lock = threading.RLock()

    def told(event: Event) -> None:
        with lock:
            follow(event)

    return told


def fetch_models(config: RunConfig) -> None:
    """Download what the run takes from the hub, once and here: otherwise every worker would begin to, all at once.

    Raises `ConfigError` where that is not possible.
    """
    model_source(config.backbone).fetch()
    encoder = config.method.options().get("sentence_encoder")
    if isinstance(encoder, str) and encoder != "hash":
        from components.models.sentence import sentence_encoder_folder  # imports transformers

        sentence_encoder_folder(encoder)


def begin_tracking(plan: Plan, follow: EventHandler, *, parent: str | None = None, continued: bool = True) -> Tracker:
    """Open the MLflow run of this stream; a continued stream continues its MLflow run.

    Raises `TrackingError` where that is not possible. But a run that has one does not wait for a store that does not
    answer: what it records is queued. `continued=False`: nothing is trained, so nothing need be recorded now, and no
    session is added to the run's provenance.
    """
    config = plan.config
    check_run_dir(plan)
    link = plan.run_dir / LINK_FILE
    tags = {
        "stream": plan.stream.name,
        "stream_digest": plan.stream.digest,
        "method": config.method.name,
        "backbone": config.backbone.name,
        "seed": str(config.seed),
        **noted(config.evaluation.replies),
    }
    if plan.stream.mixture is not None:
        tags["mixture"] = plan.stream.mixture.described(len(plan.stream.tasks))
    tags |= lineage_tags(plan, tags)
    known, every = recorded_as(plan.run_dir), config.training.checkpoint_every_updates
    tracker: Tracker
    try:
        tracker = open_tracker(
            config.tracking,
            plan.run_dir.parent,
            plan.run_dir.name,
            params=config.to_json(),
            tags=tags if parent is None else {**tags, "mlflow.parentRunId": parent},
            datasets=dataset_records(plan.stream, plan.suites),
            resume_run_id=known,
            tasks=plan.stream.task_names,
            on_note=follow,
        )
    except TrackingError as error:
        if not continued or known is None or not is_transient(error):
            raise
        follow(Note(text=f"the run goes on, and what it records is queued in its folder: {error}", warning=True))
        tracker = WaitingTracker(plan.run_dir, follow, checkpoint_every=every)
    if continued:
        claim_and_note(plan, follow, gpu=uses_gpu(config.cluster.use_gpu, cluster_devices().gpus or 0))
    if tracker.run_id is not None:
        store = without_secrets(tracking_uri(config.tracking, plan.run_dir.parent))
        write_json(link, {"run_id": tracker.run_id, "store": store, "ui": tracker.ui, "view": tracker.view})
    if not isinstance(tracker, StreamTracker):
        return tracker
    return QueuedTracker(tracker, plan.run_dir, follow, wait_s=config.tracking.wait_s, checkpoint_every=every)


def claim_and_note(plan: Plan, follow: EventHandler, *, gpu: bool) -> None:
    """Take the run's folder and note there how the run is carried out now; `follow` hears what changed since."""
    config, changed = plan.config, changed_execution(plan)
    if changed:
        listed = ", ".join(f"{name} {shown(new)} (was {shown(old)})" for name, (old, new) in changed.items())
        follow(Note(text=f"going on with {listed}"))
    claim_run_dir(plan)
    cores = config.cluster.threads() * config.cluster.num_workers
    execution = execution_of(flatten(config.to_json()))
    add_session(plan.run_dir, budget=budget_of(plan), cores=cores, gpu=gpu, execution=execution)


def budget_of(plan: Plan) -> dict[str, object]:
    """The run's budget: training rows and updates by task or segment, test rows by task, and samples per update."""
    limit = plan.config.evaluation.limit
    return {
        "samples_per_update": plan.config.training.global_batch_size,
        "train_rows": {each.task.name: each.num_rows for each in plan.schedule},
        "updates": {each.task.name: each.num_updates for each in plan.schedule},
        "test_rows": {task.name: min(task.test.num_rows, limit or math.inf) for task in plan.stream.tasks},
    }


def recorded_as(run_dir: Place) -> str | None:
    """The id of the MLflow run of the stream in this folder, if it has one."""
    link = run_dir / LINK_FILE
    return _link(link)["run_id"] if link.is_file() else None


def where_to_look(plan: Plan) -> list[str]:
    """Where to see the stream's MLflow run, if it has one: the command or server, and the link to all runs' charts."""
    link = plan.run_dir / LINK_FILE
    if not link.is_file():
        return []
    content = _link(link)
    ui = content["ui"]
    if not ui.startswith("http"):  # a command, which names a file that may have moved since
        ui = ui_command(recorded_uri(plan.config.tracking, plan.run_dir, content.get("store")))
    return [ui, *([content["view"]] if content.get("view") else [])]


def _link(path: Place) -> dict[str, str]:
    """The content of mlflow.json; raises `ConfigError`."""
    advice = "delete it to have the run recorded in MLflow anew"
    content = read_object(path, ConfigError, advice)
    for name in ("run_id", "ui"):
        if not isinstance(content.get(name), str):
            raise ConfigError(f"{path} has no text {name!r}; {advice}.")
    return {name: value for name, value in content.items() if isinstance(value, str)}
