"""Facts about a plan, for the console to show before anything starts."""

from __future__ import annotations

from components.console.eta import PlannedTask
from components.core.secrets import without_secrets
from components.data.quality.report import rows_by_pictures
from components.data.segments import Segment
from components.evaluation.replies import WORDS
from components.tracking.config import tracking_source
from components.training.config import RunConfig
from components.training.memory import GIB
from components.training.needs import EXAMPLE, Needs, duration
from components.training.placement import placement
from components.training.plan import Plan
from components.training.space import space_of


def plan_facts(plan: Plan, needs: Needs) -> dict[str, str]:
    """By name: where the run is kept, what is trained, how, on what, for how long, and which rows are left out."""
    return {**_who(plan, needs), **_rows(plan), **_where(plan)}


def found_in_the_cluster(plan: Plan, needs: Needs) -> str:
    """What a plan that was made before the cluster was joined could only assume, now that it is."""
    precision = plan.config.backbone.arithmetic(gpu=needs.for_gpu)
    return f"in this cluster: device {_device(needs)}; precision {precision}; time {_time(plan, needs)}"


def is_large(needs: Needs) -> bool:
    """Whether memory is worth a table: on a GPU, and where a worker needs several GiB."""
    return needs.for_gpu or needs.memory.needed > 4 * GIB


def memory_table(plan: Plan, needs: Needs) -> list[tuple[str, str, str]]:
    """The memory of each worker: what for, and GiB while a task is learned and while rows are answered."""
    memory = needs.memory

    def line(name: str) -> tuple[str, str, str]:
        sizes = memory.training.get(name), memory.answering.get(name)
        learning, answering = ("-" if size is None else f"{size / GIB:.2f}" for size in sizes)
        return name, learning, answering

    learning, answering = (f"{sum(sizes.values()) / GIB:.1f}" for sizes in (memory.training, memory.answering))
    other = "without" if plan.config.backbone.gradient_checkpointing else "with"
    return [
        *(line(name) for name in dict.fromkeys((*memory.training, *memory.answering))),
        ("in all, right to a tenth", learning, answering),
        (f"in all {other} checkpointing", f"{memory.other_checkpointing / GIB:.1f}", "-"),
    ]


def planned_tasks(plan: Plan) -> list[PlannedTask]:
    """The tasks or segments in their order, with the rows that are trained on and scored."""
    limit = plan.config.evaluation.limit
    scored = [min(task.test.num_rows, limit or task.test.num_rows) for task in plan.stream.tasks]
    unscored = [0 if task.unscored is None else task.unscored.num_rows for task in plan.stream.tasks]
    tasks: list[PlannedTask] = []
    for number, scheduled in enumerate(plan.schedule):
        step, segment = scheduled.task, isinstance(scheduled.task, Segment)
        tasks.append(
            PlannedTask(
                name=step.name,
                train_rows=scheduled.num_rows,
                test_rows=sum(scored) if segment else scored[number],
                num_updates=scheduled.num_updates,
                unscored_rows=sum(unscored) if segment else unscored[number],
                holds=", ".join(f"{task} {rows}" for task, rows in step.rows.items())
                if isinstance(step, Segment)
                else "",
            )
        )
    return tasks


def _who(plan: Plan, needs: Needs) -> dict[str, str]:
    config, workers, mixture = plan.config, plan.config.cluster.num_workers, plan.stream.mixture
    facts = {
        "run": str(plan.run_dir),
        "stream": f"{plan.stream.name} ({plan.stream.digest[:12]})",
        **({} if mixture is None else {"mixture": mixture.described(len(plan.stream.tasks))}),
        **({} if plan.origin is None else {"learned already": f"run {plan.origin.named}"}),
        "method": _method(config),
        "backbone": f"{config.backbone.name}, {_many(needs.counted.shape.weights)} weights, {config.backbone.dtype}",
        "trained": _trained(needs),
        "device": _device(needs),
        "precision": config.backbone.arithmetic(gpu=needs.for_gpu),
        "workers": f"{workers} with {_one_gpu(needs)}{config.cluster.threads()} threads each, {config.training.engine} "
        f"ZeRO-{config.training.zero_stage}, global batch {config.training.global_batch_size}, micro batch "
        f"{config.training.micro_size(workers)}",
        **placement(config, on_gpus=needs.for_gpu),
        **({} if is_large(needs) else {"memory": _memory(plan, needs)}),
        "vision features": needs.features.described(),
        "time": _time(plan, needs),
        "space": space_of(plan, needs).described(),
    }
    if plan.fitted.template:
        facts["template"] = f"{plan.fitted.template} ({plan.fitted.why})"
    return facts


def _trained(needs: Needs) -> str:
    size = needs.counted.method
    if size is None:
        return "not known before the method reads weights; it is not part of the memory below"
    if not size.trainable:
        return "nothing"
    growth = f", {_many(size.growth)} more with every task" if size.growth else ""
    return f"{_many(sum(size.trainable))} parameters a task{growth}"


def _device(needs: Needs) -> str:
    if needs.devices.gpus is None:
        assumed = "a GPU for each worker is" if needs.on_gpus else "CPUs are"
        return f"what the cluster has, known when it is joined; {assumed} assumed here"
    if needs.no_gpu_for_it:
        return f"none (there is no GPU; memory and time below are those of an {EXAMPLE})"
    if not needs.devices.gpus:
        return "CPU (there is no GPU)"
    return needs.devices.described() if needs.on_gpus else f"CPU; not used: {needs.devices.described()}"


def _one_gpu(needs: Needs) -> str:
    return "a GPU and " if needs.on_gpus else ""


def _memory(plan: Plan, needs: Needs) -> str:
    learning, answering = (sum(sizes.values()) / GIB for sizes in (needs.memory.training, needs.memory.answering))
    who = "in each process that scores" if plan.config.evaluation.beside else "while it answers"
    return f"about {learning:.2f} GiB in each worker while it learns, {answering:.2f} {who}, besides PyTorch"


def _time(plan: Plan, needs: Needs) -> str:
    found = needs.forecast
    if found is None:
        return f"no estimate, since the peak of {needs.devices.name or 'this GPU'} is not known"
    return (
        f"{duration(found.training_s)} of training and{', beside it,' if plan.config.evaluation.beside else ''} "
        f"{duration(found.scoring_s)} of answering, assuming {found.assumption}"
    )


def _many(number: int) -> str:
    """`7.06 billion`, `16.8 million`, `24,576`."""
    for name, unit in (("billion", 1e9), ("million", 1e6)):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,}"


def _method(config: RunConfig) -> str:
    """The method, and which of its options are those for small backbones rather than the published ones."""
    name, small = config.method.name, config.method.small_backbone_options()
    if not (small and config.backbone.is_small):
        return name
    return f"{name}, with options for small backbones: {', '.join(f'{key} {value}' for key, value in small.items())}"


def _rows(plan: Plan) -> dict[str, str]:
    config = plan.config
    facts: dict[str, str] = {}
    several = {name: rows for name, rows in plan.fitted.pictures.items() if max(rows, default=0) > 1}
    if several:
        facts["pictures in a row"] = "; ".join(f"{name} {rows_by_pictures(rows)}" for name, rows in several.items())
    for what, rows in (("left out", plan.fitted.left_out), ("cut", plan.fitted.cut)):
        if rows:
            facts[what] = f"{_listed(rows)} (rows of more than {config.backbone.max_length} tokens)"
    unseen = {each.task.name: each.unseen_rows(config.training.global_batch_size) for each in plan.schedule}
    if any(unseen.values()):
        facts["unseen rows"] = (
            f"{_listed(unseen)} training rows are never learned from: the budget ends before one epoch"
        )
    if config.evaluation.replies != "generated":
        counts = ", ".join(f"{name} {count} of {rows} rows" for name, (count, rows) in plan.with_options.items())
        facts["replies"] = f"{WORDS[config.evaluation.replies]}: {counts}; all others are generated"
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
        uri, source = tracking_source(config.tracking, plan.run_dir.parent)
        facts["MLflow"] = f"{without_secrets(uri)} ({source}), experiment {config.tracking.experiment}"
    if plan.suites:
        listed = ", ".join(f"{suite.name} ({suite.test.num_rows} rows)" for suite in plan.suites)
        when = "after every task" if config.evaluation.suites_after_every_task else "after the last task"
        facts["general suites"] = f"{listed}, before the stream and {when}"
    return facts


def _listed(rows: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in rows.items() if count)
