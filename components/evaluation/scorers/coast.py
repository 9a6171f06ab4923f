"""COAST's domain tasks. Their release holds no scoring script, so compat and fixed are the same here.

By all signs the paper's figures come from a language model as judge, whose prompt was not kept. What stands here
instead is each source dataset's own metric, with `answers` (a list) or `answer` (one text) as the reference: ChartQA
relaxed accuracy, DocVQA ANLS, IconQA and PathVQA (COAST's medicalqa) exact match.
"""

from __future__ import annotations

from components.evaluation.scorers.metrics import anls, exact, relaxed
from components.evaluation.scorers.references import Reference, accepted_answers


def chartqa(prediction: str, reference: Reference) -> float:
    """Relaxed accuracy: numbers within 5 % of an accepted answer, everything else exact."""
    return relaxed(prediction, accepted_answers(reference))


def docvqa(prediction: str, reference: Reference) -> float:
    """ANLS: one minus the normalised edit distance to the nearest accepted answer, 0 below one half."""
    return anls(prediction, accepted_answers(reference))


def exact_match(prediction: str, reference: Reference) -> float:
    """IconQA and PathVQA: equality with an accepted answer up to case, spaces and a final period."""
    return exact(prediction, accepted_answers(reference))
