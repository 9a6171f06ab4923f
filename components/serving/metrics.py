"""Figures of a server in Prometheus's text form. Names begin with `littoral_serve_`.

Each replica counts for itself. Whichever replica is asked adds what the others last told, so that a scrape sees all of
them; the label `replica` keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)
PREFIX = "littoral_serve"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A metric as plain values, to be sent from one process to another."""

    name: str
    documentation: str
    kind: str
    samples: tuple[tuple[str, tuple[tuple[str, str], ...], float], ...]


class Metrics:
    """What one replica counts."""

    def __init__(self, replica: str) -> None:
        self._registry = CollectorRegistry()
        self._label = ("replica", replica)

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", said, labels, registry=self._registry)

        def histogram(name: str, said: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", said, labels, buckets=buckets, registry=self._registry)

        self.requests = counter("requests", "Requests by path and status", "path", "status")
        self.refused = counter("refused", "Requests that were refused or failed, by reason", "code")
        self.seconds = histogram("request_seconds", "Seconds from the request to its last word", SECONDS, "stream")
        self.first = histogram("first_word_seconds", "Seconds to the first word of a stream", SECONDS)
        self.waited = histogram("waiting_seconds", "Seconds until a request's batch began", SECONDS)
        self.rows = histogram("batch_rows", "Requests in a batch", ROWS)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, those of pictures included")
        self.reply_tokens = counter("reply_tokens", "Tokens of replies")
        self.served = counter("served", "Replies by checkpoint, role and serving task", "checkpoint", "role", "task")
        self.shadows = counter("shadow_replies", "Replies of the shadow: equal, other, failed or left_out", "outcome")
        self.swaps = counter("swaps", "Changes of the checkpoints that answer")
        self.inside = Gauge(f"{PREFIX}_requests_inside", "Requests that are inside now", registry=self._registry)
        self.waiting = Gauge(f"{PREFIX}_requests_waiting", "Requests that wait for a batch", registry=self._registry)
        self.checkpoint = Gauge(
            f"{PREFIX}_checkpoint", "1 for each checkpoint in use", ["checkpoint", "role"], registry=self._registry
        )

    def families(self) -> list[Family]:
        """All figures now, labelled with this replica."""
        return [
            Family(
                name=metric.name,
                documentation=metric.documentation,
                kind=metric.type,
                samples=tuple(
                    (sample.name, (*sorted(sample.labels.items()), self._label), sample.value)
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ),
            )
            for metric in self._registry.collect()
        ]


class _Merged:
    """Families of several replicas as a collector."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = [*families]

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for family in self._families:
            metric = merged.setdefault(family.name, Metric(family.name, family.documentation, family.kind))
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
        return merged.values()


def exposition(families: Iterable[Family]) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(families))  # type: ignore[arg-type]  (a collector by its method, not by its class)
    return generate_latest(registry)
