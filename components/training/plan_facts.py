"""Facts about a plan, for the console to show before anything starts."""

from __future__ import annotations

from components.console.eta import PlannedTask
from components.core.naming import without_secrets
from components.tracking.config import tracking_source
from components.training.config import RunConfig
from components.training.plan import Plan


def plan_facts(plan: Plan) -> dict[str, str]:
    """By name: where the run is kept, what is trained and how, on which processes, and which rows are left out."""
    return {**_who(plan), **_rows(plan), **_where(plan)}


def planned_tasks(plan: Plan) -> list[PlannedTask]:
    """The tasks in their order, with the rows that are trained on and scored."""
    limit = plan.config.evaluation.limit
    return [
        PlannedTask(
            name=scheduled.task.name,
            train_rows=scheduled.num_rows,
            test_rows=min(scheduled.task.test.num_rows, limit or scheduled.task.test.num_rows),
            num_updates=scheduled.num_updates,
            unscored_rows=0 if scheduled.task.unscored is None else scheduled.task.unscored.num_rows,
        )
        for scheduled in plan.schedule
    ]


def _who(plan: Plan) -> dict[str, str]:
    config = plan.config
    facts = {
        "run": str(plan.run_dir),
        "stream": f"{plan.stream.name} ({plan.stream.digest[:12]})",
        "method": _method(config),
        "backbone": f"{config.backbone.name}, {config.backbone.dtype}",
        "workers": f"{config.cluster.num_workers} with {config.cluster.threads()} threads each, "
        f"{config.training.engine} ZeRO-{config.training.zero_stage}, global batch {config.training.global_batch_size}",
    }
    if plan.fitted.template:
        facts["template"] = f"{plan.fitted.template} ({plan.fitted.why})"
    return facts


def _method(config: RunConfig) -> str:
    """The method, and which of its options are those for small backbones rather than the published ones."""
    name, small = config.method.name, config.method.small_backbone_options()
    if not (small and config.backbone.is_small):
        return name
    return f"{name}, with options for small backbones: {', '.join(f'{key} {value}' for key, value in small.items())}"


def _rows(plan: Plan) -> dict[str, str]:
    config = plan.config
    facts: dict[str, str] = {}
    for what, rows in (("left out", plan.fitted.left_out), ("cut", plan.fitted.cut)):
        if rows:
            facts[what] = f"{_listed(rows)} rows, which take more than {config.backbone.max_length} tokens"
    unseen = {each.task.name: each.unseen_rows(config.training.global_batch_size) for each in plan.schedule}
    if any(unseen.values()):
        facts["unseen rows"] = (
            f"{_listed(unseen)} training rows are never learned from: the budget ends before one epoch"
        )
    if config.stream.validation:
        facts["validation"] = (
            f"{config.stream.validation:.0%} of the training rows, cut by a hash of what they show, are never learned "
            f"from; scored are the {config.evaluation.split} rows"
        )
    return facts


def _where(plan: Plan) -> dict[str, str]:
    config = plan.config
    facts: dict[str, str] = {}
    if config.tracking.enabled:
        uri, source = tracking_source(config.tracking, config.storage)
        facts["MLflow"] = f"{without_secrets(uri)} ({source}), experiment {config.tracking.experiment}"
    if plan.suites:
        listed = ", ".join(f"{suite.name} ({suite.test.num_rows} rows)" for suite in plan.suites)
        when = "after every task" if config.evaluation.suites_after_every_task else "after the last task"
        facts["general suites"] = f"{listed}, before the stream and {when}"
    return facts


def _listed(rows: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in rows.items() if count)
