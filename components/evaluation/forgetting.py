"""Forgetting in two parts that add up, by comparing the scores with a variant of them (`matrix.VARIANTS`).

With S the scores, O the variant, and gap[i, j] = O[i, j] - S[i, j] what the variant gains on task j after task i,
averaged over the tasks before the last one:

    S[j, j] - S[T, j] = (O[j, j] - O[T, j]) + (gap[T, j] - gap[j, j])

    oracle routing     weight drift: the right parameters answer worse than they did
                       + routing error: more is lost by choosing the wrong ones than when j was new
    repaired replies   knowledge loss: the answer in the reply is worse than it was
                       + format drift: more is lost by answering in another form than when j was new

Any part can be negative.
"""

from __future__ import annotations

from collections.abc import Mapping

from components.evaluation.matrix import MatrixError, ScoreMatrix

# By variant: the forgetting that disappears with it, and what is lost all the same.
SPLITS = {
    "oracle": ("forgetting_routing_error", "forgetting_weight_drift"),
    "repaired": ("forgetting_format_drift", "forgetting_knowledge_loss"),
}
SPLIT_LABELS = {
    "forgetting_routing_error": "  of it by routing error",
    "forgetting_weight_drift": "  of it by weight drift",
    "forgetting_format_drift": "  of it by format drift",
    "forgetting_knowledge_loss": "  of it by knowledge loss",
}


def split_forgetting(matrix: ScoreMatrix, other: ScoreMatrix, variant: str) -> dict[str, float]:
    """`forgetting_diagonal` as the growth of the gap and what is left in `other`, under the names in `SPLITS`.

    Raises `MatrixError` when cells for it are missing.
    """
    grown, left = SPLITS[variant]
    rest = other.forgetting("diagonal")
    return {grown: matrix.forgetting("diagonal") - rest, left: rest}


def split_if_known(matrix: ScoreMatrix, variants: Mapping[str, ScoreMatrix | None]) -> dict[str, float]:
    """The parts by every variant that was measured; empty while too few tasks are learned."""
    parts: dict[str, float] = {}
    for variant in SPLITS:
        other = variants.get(variant)
        try:
            parts |= {} if other is None else split_forgetting(matrix, other, variant)
        except MatrixError:
            continue  # as `ScoreMatrix.summary`: a figure without its cells is left out
    return parts
