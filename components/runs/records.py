"""Records in a run's folder that nothing else depends on: a damaged one is set aside, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable

from components.core.errors import LittoralError
from components.core.events import EventHandler, Note
from components.core.files import set_aside
from components.core.location import AnyPlace
from components.core.lock import sole_user
from components.core.run_files import LINK_FILE
from components.runs.costs import COSTS_FILE, Costs
from components.runs.provenance import MADE_WITH_FILE, made_with

ASIDE = ".damaged"


def set_damaged_aside(run_dir: AnyPlace, recorded_as: Callable[[AnyPlace], object], handle: EventHandler) -> None:
    """Rename each record that cannot be read, and say what that costs. `recorded_as` reads the link to MLflow."""
    readers: dict[str, tuple[Callable[[AnyPlace], object], str]] = {
        COSTS_FILE: (Costs.read, "what the run took before is not known any more"),
        MADE_WITH_FILE: (made_with, "what it was made with before is not known any more"),
        LINK_FILE: (recorded_as, "it is recorded in MLflow anew"),
    }
    damaged = [name for name, (read, _) in readers.items() if not _is_readable(run_dir, read)]
    if not damaged:
        return
    with sole_user(run_dir, f"run {run_dir.name}"):
        for name in damaged:
            set_aside(run_dir / name, f"{name}{ASIDE}")
            text = f"{name} of run {run_dir.name} is damaged and set aside as {name}{ASIDE}; {readers[name][1]}"
            handle(Note(text=text, warning=True))


def _is_readable(run_dir: AnyPlace, read: Callable[[AnyPlace], object]) -> bool:
    try:
        read(run_dir)
    except LittoralError as error:
        if isinstance(error.__cause__, OSError):  # the storage's trouble, not the file's
            raise
        return False
    return True
