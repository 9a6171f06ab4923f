"""Facts about runs for the report's tables: forgetting in parts, costs, published results, differing settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from components.core.checkpoint_files import listed
from components.core.errors import CheckpointError
from components.core.run_files import KEPT_CHECKPOINTS, STATE_FILE
from components.evaluation.figure_names import NO_BOUNDARIES
from components.evaluation.forgetting import SPLITS, split_if_known
from components.evaluation.ledger import Difference, differences, run_protocol
from components.evaluation.matrix import ScoreMatrix
from components.evaluation.matrix_rows import variant_file
from components.reporting.groups import Groups
from components.runs.results import FinishedRun, TaskFacts, task_facts
from components.statistics.mean_std import MeanStd
from components.training.config import chosen_on_test, flatten

PLACES = ("run_id", "storage", "cluster.address", "tracking.")  # settings of where a run took place, not of what it did

Parts = dict[str, list[dict[str, float]]]  # by line, of each seed


@dataclass(frozen=True, kw_only=True)
class DifferingSetting:
    """A setting in which runs differ: a value for each run, and whether it is not the most frequent one."""

    name: str
    values: tuple[tuple[str | None, bool], ...]


def known_facts(runs: Iterable[FinishedRun]) -> Mapping[str, TaskFacts]:
    """Facts of the tasks from the first run that has them; empty where no run has: old records on other data."""
    return next((facts for run in runs if (facts := task_facts(run))), {})


def variants_of(run: FinishedRun) -> dict[str, ScoreMatrix]:
    """The variants by which forgetting is split, where they were measured; a record has `oracle` only."""
    found = {"oracle": run.oracle, "repaired": _variant(run, "repaired")}
    return {name: matrix for name, matrix in found.items() if matrix is not None}


def forgetting_parts(groups: Groups, variant: str) -> Parts:
    """By line, the two parts under `variant` for each seed; lines of which a run lacks the variant are left out."""
    found: Parts = {}
    for line, group in groups.items():
        parts = [split_if_known(run.matrix, {variant: variants_of(run).get(variant)}) for run in group]
        if all(parts):
            found[line] = parts
    return found


def forgetting_lines(groups: Groups) -> list[list[str]]:
    """Line, forgetting against the diagonal, and its parts by both variants; "" where a variant was not measured."""
    known = {variant: forgetting_parts(groups, variant) for variant in SPLITS}
    lines: list[list[str]] = []
    for line, group in groups.items():
        totals = [run.matrix.summary().get("forgetting_diagonal") for run in group]
        cells = ["" if None in totals else str(MeanStd.of([total for total in totals if total is not None]))]
        for variant, names in SPLITS.items():
            seeds = known[variant].get(line, [])
            cells += [str(MeanStd.of([one[name] for one in seeds])) if seeds else "" for name in names]
        lines.append([line, *cells])
    return lines


def cost_lines(groups: Groups) -> list[list[str]]:
    """Run, line, minutes of training and evaluation, trainable parameters, megabytes kept after the last task.

    Costs of a run that wrote none, as before version 0.2, are unknown.
    """
    lines: list[list[str]] = []
    for line, run in ((line, run) for line, group in groups.items() for run in group):
        spent, cost = ["unknown"] * 3, run.cost
        if cost is not None:
            spent = [f"{cost.train_s / 60:.1f}", f"{cost.evaluate_s / 60:.1f}", f"{cost.trainable_parameters:,}"]
        lines.append([str(run.config.run_id), line, *spent, _kept(run)])
    return lines


def published_differences(groups: Groups) -> list[tuple[str, Difference]]:
    """Every run against the published rows of its method and benchmark, by run id."""
    return [
        (str(run.config.run_id), difference)
        for group in groups.values()
        for run in group
        # published figures are of test rows and generated replies
        if run.config.evaluation.split == "test" and run.config.evaluation.replies == "generated"
        for difference in differences(
            run.stream_name,
            run.config.method.name,
            run.matrix,
            run_protocol(run.config.backbone.name, run.matrix.tasks),
            _variant(run, "compat"),
        )
    ]


def stream_title(run: FinishedRun) -> str:
    """The stream's name, marked if validation rows were scored or replies were chosen among options."""
    evaluation = run.config.evaluation
    rows = "" if evaluation.split == "test" else ", scored on validation rows"
    return run.stream_name + rows + ("" if evaluation.replies == "generated" else f", replies by {evaluation.replies}")


def chosen_notes(runs: Iterable[FinishedRun]) -> list[str]:
    """A warning if settings were chosen by scores on the test rows that the runs are scored on; else []."""
    named = [
        str(run.config.run_id) for run in runs if chosen_on_test(run.chosen) and run.config.evaluation.split == "test"
    ]
    if not named:
        return []
    return [f"Settings chosen by scores on test rows, which are therefore no test of them: {', '.join(named)}."]


def boundary_notes(runs: Iterable[FinishedRun]) -> list[str]:
    """Why figures are left out, for runs of streams without boundaries; else []."""
    return [NO_BOUNDARIES] if any(run.matrix.points is not None for run in runs) else []


def lineage_notes(runs: Iterable[FinishedRun]) -> list[str]:
    """What each run that continued from another one took over from it; [] for runs that began as usual."""
    return [
        f"{run.config.run_id} continued from run {run.origin.named}; its scores "
        f"{'until then' if run.origin.unlearned is None else 'before its last row'} are that run's."
        for run in runs
        if run.origin is not None
    ]


def differing_settings(groups: Groups) -> list[DifferingSetting]:
    """Settings that several runs have with different values, in the configuration's order; None: a run lacks it."""
    flat = [flatten(run.config.to_json()) for group in groups.values() for run in group]
    found: list[DifferingSetting] = []
    for name in dict.fromkeys(name for one in flat for name in one):
        values = [one.get(name) for one in flat]
        counts = Counter(value for value in values if value is not None)
        if len(counts) == 1 or name.startswith(PLACES):
            continue
        usual, most = counts.most_common(1)[0]
        marked = [value is not None and most > 1 and value != usual for value in values]
        found.append(DifferingSetting(name=name, values=tuple(zip(values, marked, strict=True))))
    return found


def own_options(groups: Groups) -> dict[str, dict[str, str]]:
    """By run id, the options that no other run given has, and their values; runs without any are left out."""
    flat = {str(run.config.run_id): flatten(run.config.to_json()) for group in groups.values() for run in group}
    counts = Counter(name for one in flat.values() for name in one)
    own = {
        run_id: {name.removeprefix("method."): value for name, value in one.items() if counts[name] == 1}
        for run_id, one in flat.items()
    }
    return {run_id: options for run_id, options in own.items() if options and len(flat) > 1}


def _variant(run: FinishedRun, name: str) -> ScoreMatrix | None:
    """A variant of the score matrix, where it was measured and kept."""
    path = variant_file(run.path, name)
    return ScoreMatrix.read(path) if path.is_file() else None


def _kept(run: FinishedRun) -> str:
    """Size of the last checkpoint in MB; "" for a record or a run whose checkpoints are gone."""
    found = (each for each in (run.path / KEPT_CHECKPOINTS).glob("*") if each.is_dir())
    folders = sorted(found, key=lambda each: each.name)
    if not folders:
        return ""
    try:
        files = listed(folders[-1], run.path)
    except CheckpointError:
        return ""
    return f"{((folders[-1] / STATE_FILE).stat().st_size + files.size()) / 1e6:,.1f}"
