"""A routed method's forgetting in two parts that add up: routing error and weight drift."""

from __future__ import annotations

from components.evaluation.matrix import ScoreMatrix
from components.evaluation.matrix_rows import MatrixError

SPLIT_LABELS = {
    "forgetting_routing_error": "  of it by routing error",
    "forgetting_weight_drift": "  of it by weight drift",
}


def split_forgetting(matrix: ScoreMatrix, oracle: ScoreMatrix) -> dict[str, float]:
    """`forgetting_diagonal` as the sum of two figures; raises `MatrixError` when cells for it are missing.

    With S the scores, O those under oracle routing and gap[i, j] = O[i, j] - S[i, j] what routing costs task j after
    task i, averaged over the tasks before the last one:

        weight drift   = O[j, j] - O[T, j]        the right parameters answer worse than they did
        routing error  = gap[T, j] - gap[j, j]    more is lost by choosing the wrong ones than when j was new

    so that S[j, j] - S[T, j] = weight drift + routing error. Either can be negative.
    """
    drift = oracle.forgetting("diagonal")
    return {
        "forgetting_routing_error": matrix.forgetting("diagonal") - drift,
        "forgetting_weight_drift": drift,
    }


def split_if_known(matrix: ScoreMatrix, oracle: ScoreMatrix | None) -> dict[str, float]:
    """The two figures, or nothing while too few tasks are learned or oracle routing was not measured."""
    if oracle is None:
        return {}
    try:
        return split_forgetting(matrix, oracle)
    except MatrixError:
        return {}  # as `ScoreMatrix.summary`: a figure without its cells is left out
