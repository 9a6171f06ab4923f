"""COAST's domain tasks. Their release has no scoring script; `compat` is each source dataset's published metric.

The paper's figures seem to come from a language model as judge, whose prompt was not released. Used here instead is
each source dataset's own metric, with `answers` (a list) or `answer` (one text) as the reference: ChartQA
relaxed accuracy (pix2struct's, which lmms-eval and others share), DocVQA ANLS, IconQA and PathVQA (COAST's medicalqa)
exact match. Only ChartQA's `fixed` differs: see `metrics.relaxed`.
"""

from __future__ import annotations

from components.metrics.released.references import Reference, accepted_answers
from components.metrics.scorers import RELAXED_TOLERANCE, anls, exact, relaxed


def chartqa_compat(prediction: str, reference: Reference) -> float:
    """The published relaxed accuracy: two numbers, the answer's not 0, within 5 %; everything else equal in lower case.

    "72%" is 0.72, so it is wrong for "72"; "1,234" is no number, and "blue." is not "blue".
    """
    return float(any(_published_relaxed(prediction, answer) for answer in accepted_answers(reference)))


def chartqa_fixed(prediction: str, reference: Reference) -> float:
    """Relaxed accuracy with a percent sign read either way, thousands separators and a final period."""
    return relaxed(prediction, accepted_answers(reference))


def docvqa(prediction: str, reference: Reference) -> float:
    """ANLS: one minus the normalised edit distance to the nearest accepted answer, 0 below one half."""
    return anls(prediction, accepted_answers(reference))


def exact_match(prediction: str, reference: Reference) -> float:
    """IconQA and PathVQA: equality with an accepted answer up to case, spaces and a final period."""
    return exact(prediction, accepted_answers(reference))


def _published_relaxed(prediction: str, answer: str) -> bool:
    given, wanted = _published_number(prediction), _published_number(answer)
    if given is None or not wanted:
        return prediction.lower() == answer.lower()
    return abs(given - wanted) / abs(wanted) <= RELAXED_TOLERANCE


def _published_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
