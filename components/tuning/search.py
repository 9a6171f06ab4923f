"""Ray Tune over trials: which are run, how many at once, and which are ended early."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from components.core.errors import ConfigError, StreamStopped
from components.core.leftovers import temporary_folder
from components.core.machine import usable_cpus
from components.core.ray_session import ray_session
from components.core.run_files import FINISHED_FILE
from components.training.config import ClusterConfig
from components.training.deaths import user_error
from components.training.devices import uses_gpu
from components.training.local_worker import early_worker
from components.training.stopping import STOP_FILE, StopWatch, request_stop
from components.tuning.objective import Objective
from components.tuning.space import Axis, Values, plain
from components.tuning.trials import LEARNED, Figures, Trial, TrialPlan, run_trial, trial_of

Stopping = Literal["none", "asha"]
VALUES = "values"  # Tune's only parameter where trials are listed beforehand
TRIAL_CPUS = 1  # of the process that drives a trial's stream


@dataclass(frozen=True, kw_only=True)
class Search:
    """How trials are chosen. `objectives[0]` decides; with Optuna, several make a Pareto front."""

    objectives: tuple[Objective, ...]
    num_tasks: int
    listed: tuple[Values, ...] = ()
    """All trials, in order; or, for Optuna, those to begin with."""
    axes: tuple[Axis, ...] = ()
    """What Optuna draws from; empty: nothing but `listed` is tried."""
    num_samples: int = 0
    """Trials in all, where Optuna chooses."""
    seed: int = 0
    stopping: Stopping = "none"
    """asha: a trial ends early when it is behind, by `objectives[0]`, half of those that have learned as many tasks."""
    grace: int = 1
    """Learned tasks before which no trial is ended."""


OnProgress = Callable[[str, Figures | None], None]


def run_trials(search: Search, plan: TrialPlan, *, at_once: int | None, on_progress: OnProgress) -> list[Trial]:
    """Run every trial (finished ones only report) and return them as they stand, in the order they were begun.

    `at_once` limits how many run together; None: as many as the cluster holds. Raises `ConfigError` when not even one
    fits. A trial that fails is recorded with its reason and does not stop the others. When the sweep's folder gets a
    stop file, the trials that are running stop at a checkpoint, no other one begins, and `StreamStopped` is raised.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own ends trials without a checkpoint
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a stream's folder may be given as seen from here
    follower = _Follower(plan, on_progress)
    wanted = at_once or streams_of_this_machine(plan.base.cluster)
    folder = str(temporary_folder("tune"))  # Tune's own notes; a sweep continues from its trials' folders
    try:
        cluster = plan.base.cluster
        with ray_session(cluster.address, num_workers=cluster.num_workers, trials=wanted):
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(_tune_trial, plan=plan), {"CPU": TRIAL_CPUS}),
                param_space={} if search.axes else {VALUES: tune.grid_search([dict(each) for each in search.listed])},
                tune_config=tune.TuneConfig(
                    scheduler=scheduler_of(search, plan),
                    search_alg=optuna_search(search) if search.axes else None,
                    num_samples=search.num_samples if search.axes else 1,
                    max_concurrent_trials=min(wanted, room(plan.base.cluster)),
                    reuse_actors=True,  # the next trial finds the imports of the one before, and its worker
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(folder),
                    verbose=0,
                    callbacks=[follower],
                    stop=_WhenAllHaveLeft(follower),
                ),
            )
            results = tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if follower.all_have_left:
        place = plan.sweep_folder
        raise StreamStopped(f"sweep {place.name} was stopped by {place / STOP_FILE}; the same command continues it.")
    trials: dict[str, Trial] = {}
    for result in results:
        values = _values(result.config or {})
        trial = trial_of(plan, values, error=reason(result.error))
        trials.setdefault(trial.name, trial)
    return list(trials.values())


def streams_of_this_machine(cluster: ClusterConfig) -> int:
    """Streams that an embedded cluster runs at once: one a CPU, and never more workers than CPUs."""
    return max(1, usable_cpus() // cluster.num_workers)


def room(cluster: ClusterConfig) -> int:
    """Trials that the running cluster can hold; each needs its own process, its workers and one CPU for Ray Data."""
    resources = ray.cluster_resources()
    needed = TRIAL_CPUS + cluster.num_workers + 1
    holds = int(resources.get("CPU", 0)) // needed
    on_gpus = uses_gpu(cluster.use_gpu, int(resources.get("GPU", 0)))
    if on_gpus:
        holds = min(holds, int(resources.get("GPU", 0)) // cluster.num_workers)
    if holds < 1:
        gpus = f" and {cluster.num_workers} GPUs" if on_gpus else ""
        raise ConfigError(
            f"one trial needs {needed} CPUs{gpus}, the cluster has {int(resources.get('CPU', 0))} CPUs and "
            f"{int(resources.get('GPU', 0))} GPUs; lower cluster.num_workers or add nodes."
        )
    return holds


def reason(error: BaseException | None) -> str:
    """What went wrong, in a line."""
    if error is None:
        return ""
    known = user_error(error)
    return str(known) if known else (str(error).strip().splitlines() or [repr(error)])[-1].strip()


def _tune_trial(config: dict[str, Any], *, plan: TrialPlan) -> None:
    """What Tune runs for every trial, in a process that may have run others."""
    # For this function's thread to end before the next trial, which fails where it has not: 2 s, on a busy machine.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "120")
    values = _values(config)
    if not (plan.folder(values) / FINISHED_FILE).is_file():
        run = plan.config(values)  # its worker imports what it needs while the run is planned here
        early_worker(run, on_gpus=uses_gpu(run.cluster.use_gpu, int(ray.cluster_resources().get("GPU", 0))))
    run_trial(values, plan, tune.report)


def _values(config: dict[str, Any]) -> Values:
    return {field: plain(value) for field, value in config.get(VALUES, config).items()}


def scheduler_of(search: Search, plan: TrialPlan) -> TrialScheduler:
    """Asynchronous successive halving over learned tasks (Li et al., 2020), or no ending at all."""
    if search.stopping == "none":
        return FIFOScheduler()
    goal = search.objectives[0]
    return _EndsInOrder(
        plan,
        time_attr=LEARNED,
        metric=goal.name,
        mode=goal.mode,
        max_t=search.num_tasks,
        grace_period=search.grace,
        reduction_factor=2,
    )


class _EndsInOrder(ASHAScheduler):
    """ASHA that asks a trial's workers to end. One that Tune ends itself leaves their place in the cluster taken."""

    def __init__(self, plan: TrialPlan, **options: Any) -> None:
        super().__init__(**options)
        self._plan = plan

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        verdict = super().on_trial_result(tune_controller, trial, result)
        folder = self._plan.folder(_values(trial.config))
        if verdict == TrialScheduler.STOP and result[LEARNED] < self._max_t and not (folder / FINISHED_FILE).is_file():
            request_stop(folder)
        return TrialScheduler.CONTINUE


def optuna_search(search: Search) -> Searcher:
    """TPE over `search.axes`, beginning with `search.listed`; several objectives make it look for a Pareto front."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "the search optuna needs Optuna; install it with `pip install 'littoral[optuna]'`."
        ) from error
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names, modes = [each.name for each in search.objectives], [each.mode for each in search.objectives]
    return OptunaSearch(
        space={axis.field: axis.domain() for axis in search.axes},
        metric=names if len(names) > 1 else names[0],
        mode=modes if len(modes) > 1 else modes[0],
        seed=search.seed,
        points_to_evaluate=[dict(values) for values in search.listed] or None,
    )


class _Follower(tune.Callback):
    """Passes reports and failures on, on the driver, and a request to stop the sweep to its trials."""

    def __init__(self, plan: TrialPlan, on_progress: OnProgress) -> None:
        self._plan, self._on_progress = plan, on_progress
        self._stop = StopWatch(plan.sweep_folder)
        self.all_have_left = False  # after a request, no trial is running

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **_: Any) -> None:
        if not self._stop.requested():
            return
        running = [self._plan.folder(_values(trial.config)) for trial in trials if trial.status == TuneTrial.RUNNING]
        for folder in running:  # each time anew: a trial that is starting withdraws what earlier runs were asked
            if folder.is_dir() and not (folder / FINISHED_FILE).is_file():
                request_stop(folder, for_now=True)
        self.all_have_left = not running

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles its callbacks into its notes, which are not read again

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        self._on_progress(self._name(trial), result)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        self._on_progress(self._name(trial), None)

    def _name(self, trial: Any) -> str:
        return str(self._plan.config(_values(trial.config)).run_id)


class _WhenAllHaveLeft(Stopper):
    """Ends the search when it was asked to stop and its trials have left. Earlier, Tune would kill them."""

    def __init__(self, follower: _Follower) -> None:
        self._follower = follower

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._follower.all_have_left
