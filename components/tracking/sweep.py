"""A sweep in MLflow: one run above its trials' runs, with the space, the best setting's figures, table and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from components.core.location import Place
from components.core.naming import flatten_params
from components.core.secrets import without_secrets
from components.tracking.charts import sweep_view
from components.tracking.config import Status, TrackingConfig, tracking_uri
from components.tracking.points import points
from components.tracking.retry import told
from components.tracking.store import INSTEAD, MlflowStore, open_store

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_TAKEN = ("MLflow did not take what the sweep found", "its folder holds all of it")


class SweepTracker:
    """Records a sweep; without a store it records nothing."""

    def __init__(self, store: MlflowStore | None = None, run_id: str | None = None) -> None:
        self._store, self.run_id = store, run_id
        self.view: str | None = None  # the link to the trials, with charts laid out

    def keep(
        self,
        *,
        figures: Mapping[str, float],
        best: Mapping[str, object],
        table: Sequence[str],
        picture: Image | None,
    ) -> None:
        """Record what the sweep found: the best setting's figures and values, the table and the picture."""
        if self._store is None or self.run_id is None:
            return
        with told(*NOT_TAKEN):
            self._store.put_points(self.run_id, points(figures, step=0))
            self._store.put_json(self.run_id, {name: str(value) for name, value in best.items()}, "best.json")
            self._store.put_tags(self.run_id, {"mlflow.note.content": "\n".join(table)})
            if picture is not None:
                self._store.put_image(self.run_id, "pareto", picture, 0)

    def finish(self, status: Status) -> None:
        if self._store is not None and self.run_id is not None:
            with told(*NOT_TAKEN):
                for trial in self._store.running(self.run_id):  # its process was killed
                    self._store.close_run(trial, "KILLED" if status == "KILLED" else "FAILED")
                self._store.close_run(self.run_id, status)


def open_sweep_tracker(
    config: TrackingConfig,
    storage: Place,
    name: str,
    *,
    params: Mapping[str, object],
    fields: Sequence[str],
    metrics: Sequence[str],
    resume_run_id: str | None,
) -> SweepTracker:
    """Begin a sweep's run or go on with `resume_run_id`; raises `TrackingError` where MLflow cannot be used.

    `fields` are what it varies and `metrics` what it wants: the view of its trials shows them.
    """
    if not config.enabled:
        return SweepTracker()
    uri = tracking_uri(config, storage)
    with told(f"MLflow at {without_secrets(uri)} cannot be used", INSTEAD):
        store = open_store(uri, config.experiment, storage)
        run_id = resume_run_id or store.create_run(name, {"kind": "sweep"})
        known = store.reopen_run(run_id)
        flat = flatten_params(params)
        store.put_params(run_id, {key: value for key, value in flat.items() if key not in known})
        view = sweep_view(name, run_id, fields, metrics)
        store.put_view(view)
    tracker = SweepTracker(store, run_id)
    tracker.view = store.view_link(view.key)
    return tracker
