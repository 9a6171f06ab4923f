"""The majority answer: the score of one constant reply to every question. A model below it has learned nothing.

Light on purpose: the metrics are imported where replies are scored.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.data.rows import Split
    from components.data.tasks import TaskStream

FREQUENT = 50  # training answers tried as a constant reply
COSTLY = ("rouge_l", "sari", "caption", "edit")  # free text: milliseconds a pair, and no answer is frequent
SOURCED = ("sari",)  # what compares with the text that was asked about


def majority_score(train: Split, test: Split, limit: int | None = None) -> float:
    """0..100: the best test score that one and the same reply reaches, among the most frequent training answers.

    `limit`: over the first test rows only, as many as the runs were scored on.
    """
    from components.metrics import score  # imports every metric's library

    answers = Counter(row.answers[0] for row in train.rows(with_image=False))
    asked = Counter(
        (row.metric, row.answers, row.instruction if row.metric in SOURCED else "")
        for row in islice(test.rows(with_image=False), limit)
    )
    costly = any(metric in COSTLY for metric, _, _ in asked)
    return max(
        100.0 * sum(times * score(metric, reply, accepted, text) for (metric, accepted, text), times in asked.items())
        for reply, _ in answers.most_common(1 if costly else FREQUENT)
    ) / sum(asked.values())


def majority_scores(stream: TaskStream, limit: int | None = None) -> dict[str, float]:
    """`majority_score` of every task of the stream, by name."""
    return {task.name: majority_score(task.train, task.test, limit) for task in stream.tasks}


def majority_average(majority: Mapping[str, float], tasks: Sequence[str]) -> float | None:
    """The mean over `tasks`; None unless it is known of all of them."""
    if not tasks or any(task not in majority for task in tasks):
        return None
    return statistics.fmean(majority[task] for task in tasks)
