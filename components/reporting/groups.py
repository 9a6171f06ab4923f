"""Which runs may share a table, and which of them form one line: the same settings, other seeds or orders of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from components.core.errors import ConfigError
from components.data.tasks import stream_digest
from components.models.config import BackboneConfig
from components.runs.results import FinishedRun, task_facts
from components.training.config import flatten

# Settings of where, how often, with which seed and in which order; they do not change what is learned.
NOT_COMPARED = ("run_id", "storage", "seed", "cluster", "tracking", "evaluation")
ORDER = "stream.order"

HEADLINE = ("final average", "forgetting")  # the columns that matter most

Line = list[str]
Table = tuple[Line, list[Line]]  # header and lines
Groups = Mapping[str, Sequence[FinishedRun]]  # by the name of their line in the tables


def require_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raise `ConfigError` unless all runs share tasks, their data, test rows, backbone and training budget."""
    if not runs:
        raise ConfigError("no run was given; name at least one folder, such as runs/first.")
    first = runs[0]
    for run in runs[1:]:
        for what, mine, theirs in (
            ("scored rows", first.config.evaluation.split, run.config.evaluation.split),
            ("evaluation.replies", first.config.evaluation.replies, run.config.evaluation.replies),
            ("stream", stream_of(first), stream_of(run) if not reordered(first, run) else stream_of(first)),
            *(
                (f"backbone.{name}", getattr(first.config.backbone, name), getattr(run.config.backbone, name))
                for name in (field.name for field in fields(BackboneConfig))
            ),
            ("updates per task", first.config.training.updates_per_task, run.config.training.updates_per_task),
            ("epochs", first.config.training.epochs, run.config.training.epochs),
            ("batch", first.config.training.global_batch_size, run.config.training.global_batch_size),
            ("test rows a task", first.config.evaluation.limit, run.config.evaluation.limit),
        ):
            if mine != theirs:
                raise ConfigError(
                    f"{first.path.name} and {run.path.name} differ in {what} ({mine} and {theirs}) and cannot be "
                    "compared; give runs of one stream, backbone and budget."
                )


def grouped(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs that differ in seed and order of tasks only, as given; raises `ConfigError` for a run given twice."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        plain = {name: value for name, value in run.config.to_json().items() if name not in NOT_COMPARED}
        settings = {name: value for name, value in flatten(plain).items() if name != ORDER}
        group = groups.setdefault(str(sorted(settings.items())), [])
        for other in group:
            if (other.config.seed, other.matrix.tasks) == (run.config.seed, run.matrix.tasks):
                raise ConfigError(f"{other.path.name} and {run.path.name} are the same run with the same seed.")
        group.append(run)
    return list(groups.values())


def stream_of(run: FinishedRun) -> str:
    """The stream's name and the beginning of its data's digest."""
    return f"{run.config.stream.name} {run.stream_digest[:12]}"


def reordered(first: FinishedRun, other: FinishedRun) -> bool:
    """Whether `other` learned the tasks of `first`, on the same data, in another order."""
    if first.matrix.tasks == other.matrix.tasks or set(first.matrix.tasks) != set(other.matrix.tasks):
        return False
    facts = task_facts(first)
    if facts:
        return stream_digest(facts[task].identity for task in other.matrix.tasks) == other.stream_digest
    from components.data.streams import known_identities  # imports pyarrow

    known = (
        [
            stream_digest(identities)
            for identities in known_identities(
                first.config.stream, run.matrix.tasks, scored=first.config.evaluation.split
            )
        ]
        for run in (first, other)
    )
    return (first.stream_digest, other.stream_digest) in zip(*known, strict=True)


def orders_of(runs: Sequence[FinishedRun]) -> list[tuple[str, ...]]:
    """The orders in which these runs learned their tasks, the first run's first."""
    return list(dict.fromkeys(tuple(run.matrix.tasks) for run in runs))


def seeds_of(group: Sequence[FinishedRun]) -> str:
    """`0, 1, 2`, or with several orders `0, 1, 2 in 2 orders`."""
    seeds = ", ".join(map(str, dict.fromkeys(run.config.seed for run in group)))
    orders = len(orders_of(group))
    return seeds if orders == 1 else f"{seeds} in {orders} orders"


def named(groups: Sequence[list[FinishedRun]]) -> dict[str, list[FinishedRun]]:
    """Groups by label; where only settings outside the method differ, with the run id of its first run."""
    found: dict[str, list[FinishedRun]] = {}
    for group in groups:
        name = label(group[0])
        found[name if name not in found else f"{name}, {group[0].config.run_id}"] = group
    return found


def label(run: FinishedRun) -> str:
    """The method's name and the options that differ from its defaults."""
    method = run.config.method
    default = type(method)().options()
    changed = [f"{name} {value}" for name, value in method.options().items() if value != default[name]]
    return f"`{method.name}`" + (f" ({', '.join(changed)})" if changed else "")


def headline_first(header: Line, lines: Sequence[Line]) -> tuple[Line, list[Line]]:
    """The table with the headline columns right after the name, for a screen; tables for papers have them last."""
    first = [0, *(header.index(name) for name in HEADLINE if name in header)]
    places = first + [place for place in range(len(header)) if place not in first]
    return [header[place] for place in places], [[line[place] for place in places] for line in lines]
