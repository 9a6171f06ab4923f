"""Where a run's processes go: who learns and who scores, what each takes, and what happens at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from components.core.errors import ConfigError
from components.training.config import EvaluationConfig, RunConfig
from components.training.devices import Node, with_labels


def resources_of_a_scorer(config: RunConfig, *, on_gpus: bool) -> dict[str, float]:
    """What Ray reserves for a process that scores beside training."""
    cpus = {"CPU": float(config.evaluation.beside_cpus)}
    return cpus | {"GPU": 1.0} if on_gpus else cpus


def what_a_scorer_needs(config: RunConfig, *, on_gpus: bool) -> str:
    """`1 CPU and a GPU, on a node with ray-subcluster=eval`."""
    labels = config.evaluation.beside_labels
    where = f", on a node with {' and '.join(labels)}" if labels else ""
    return f"{_cpus(config.evaluation.beside_cpus)}{' and a GPU' if on_gpus else ''}{where}"


def require_scorers(evaluation: EvaluationConfig) -> None:
    """Raise `ConfigError` for labels without scorers. Records of earlier runs may have them, so it asks of new runs."""
    if evaluation.beside_labels and not evaluation.beside:
        raise ConfigError(
            f"evaluation.beside_labels ({','.join(evaluation.beside_labels):.200}) names nodes for processes that "
            "score beside training, and evaluation.beside is 0; set evaluation.beside to their number, or leave "
            "out evaluation.beside_labels."
        )


def require_places(config: RunConfig, nodes: Sequence[Node], *, on_gpus: bool, reserved: float = 0.0) -> None:
    """Raise `ConfigError` where the cluster of these nodes has no room for scorers beside the workers.

    `reserved`: CPUs that are kept for the command of a submitted job.

    Without this, Ray would wait for nodes that do not come.
    """
    evaluation, workers = config.evaluation, config.cluster.num_workers
    if not evaluation.beside:
        return
    wanted, labels = resources_of_a_scorer(config, on_gpus=on_gpus), with_labels(evaluation.beside_labels)
    fitting = [node for node in nodes if labels.items() <= node.labels.items()]
    one = what_a_scorer_needs(config, on_gpus=on_gpus)
    asked = f"evaluation.beside asks for {_processes(evaluation.beside)} with {one}"
    if not fitting:
        raise ConfigError(
            f"{asked}, and no node of the cluster has {'these labels' if len(labels) > 1 else 'this label'}; start one "
            f"with --labels {','.join(evaluation.beside_labels)}, or leave out evaluation.beside_labels."
        )
    places = sum(int(min(node.cpus // wanted["CPU"], node.gpus if on_gpus else float("inf"))) for node in fitting)
    if places < evaluation.beside:
        raise ConfigError(f"{asked}, and the cluster has places for {places}; lower evaluation.beside or add nodes.")
    together = f"{_workers(workers)} and {_processes(evaluation.beside)} that score beside them (evaluation.beside)"
    kept = f", {reserved:g} kept for the job's command" if reserved else ""
    cpus = workers + 1 + reserved + evaluation.beside * wanted["CPU"]
    for name, needed, there in (
        (f"CPUs (one is left to Ray Data{kept})", cpus, _sum(nodes, "cpus")),
        ("GPUs", workers + evaluation.beside if on_gpus else 0, _sum(nodes, "gpus")),
    ):
        if needed > there:
            raise ConfigError(
                f"{together} need {needed:g} {name}, the cluster has {there:g}; lower evaluation.beside or add nodes."
            )


def placement(config: RunConfig, *, on_gpus: bool) -> dict[str, str]:
    """By name, for the plan: which processes there are, what each takes, and what overlaps."""
    evaluation, workers = config.evaluation, config.cluster.num_workers
    if not evaluation.beside:
        return {"scoring": "by the workers, each row before the next task is learned; nothing overlaps"}
    gpu, rows = " and a GPU" if on_gpus else "", evaluation.beside_rows
    behind = f"{rows} row{'s' if rows > 1 else ''}"
    return {
        "placement": f"{_workers(workers)} for learning, {'each ' if workers > 1 else ''}with 1 CPU{gpu}; "
        f"{_processes(evaluation.beside)} for scoring, {'each ' if evaluation.beside > 1 else ''}with "
        f"{what_a_scorer_needs(config, on_gpus=on_gpus)}; 1 CPU is left to Ray Data",
        "scoring": "each row but the last while the next task is learned; learning waits where scoring is more than "
        f"{behind} behind",
    }


def _sum(nodes: Sequence[Node], what: str) -> float:
    return sum(getattr(node, what) for node in nodes)


def _cpus(number: int) -> str:
    return f"{number} CPU{'s' if number > 1 else ''}"


def _workers(number: int) -> str:
    return f"{number} worker{'s' if number > 1 else ''}"


def _processes(number: int) -> str:
    return f"{number} process{'es' if number > 1 else ''}"
