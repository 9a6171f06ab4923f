"""What MLflow lacks of a run that has ended, sent later from the run's own files."""

from __future__ import annotations

from components.core.errors import TrackingError
from components.core.events import EventHandler, Note
from components.core.lock import sole_user
from components.runs.execute import LINK_FILE, begin_tracking
from components.runs.rows import rows_in
from components.tracking.outbox import EVENTS_FILE, is_recorded
from components.training.plan import Plan


def complete_record(plan: Plan, follow: EventHandler) -> None:
    """Send what an outage left out of a finished run's MLflow record, and close its runs. Usually there is nothing.

    A store that cannot be reached is told as a warning: the run is whole without it.
    """
    if not plan.config.tracking.enabled or not (plan.run_dir / LINK_FILE).is_file() or is_recorded(plan.run_dir):
        return
    with sole_user(plan.run_dir, f"run {plan.run_dir.name}"):
        queued = (plan.run_dir / EVENTS_FILE).exists()  # a file, or in a store a folder
        try:
            tracker = begin_tracking(plan, follow, continued=False)
        except TrackingError as error:
            follow(Note(text=f"MLflow does not have all of this run, and its record waits: {error}", warning=True))
            return
        if not queued:  # a run of an earlier version: rows that MLflow has are not sent again
            for row in rows_in(plan.run_dir):
                tracker.handle(row)
        tracker.finish("FINISHED")
