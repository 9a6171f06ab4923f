"""Rows of a score matrix as a checkpoint keeps them, and other score variants of the same replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.core.location import AnyPlace
from components.core.options import from_plain
from components.evaluation.matrix import ScoreMatrix

# Score variants, by the column of the predictions that they average. oracle: the task was known; repaired: the answer
# in a wrongly formed reply counts; compat: by the released script's rule for that task.
VARIANTS = {"oracle": "oracle_score", "repaired": "repaired_score", "compat": "compat_score"}


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """A finished row as a checkpoint keeps it; scores are 0..100, None where a task was not evaluated."""

    after: str
    scores: dict[str, float | None]
    variants: dict[str, dict[str, float | None]] = field(default_factory=dict)  # by their names in `VARIANTS`
    served: dict[str, dict[str, Any]] = field(default_factory=dict)  # by task, a `decisions.Served` as plain JSON

    @classmethod
    def stored(cls, content: Mapping[str, Any]) -> MatrixRow:
        """From a checkpoint; earlier versions said "readings", and before that `oracle_scores`."""
        older = {name: scores for name in VARIANTS if (scores := content.get(f"{name}_scores"))}
        variants = content.get("variants", content.get("readings", older))
        served = content.get("served", {})
        whole = {"after": content["after"], "scores": content["scores"], "variants": variants, "served": served}
        return from_plain(cls, whole, "row")


def matrix_of(
    tasks: Sequence[str],
    rows: Sequence[MatrixRow],
    variant: str | None = None,
    *,
    points: Sequence[str] | None = None,
) -> ScoreMatrix:
    """The score matrix of finished rows, or a variant of it; cells without that variant are empty."""
    cells = [row.scores if variant is None else row.variants.get(variant, dict.fromkeys(tasks)) for row in rows]
    after = [row.after for row in rows]
    return ScoreMatrix(tasks, [[row[name] for name in tasks] for row in cells], after=after, points=points)


def variant_file(run_dir: AnyPlace, variant: str) -> AnyPlace:
    """Where a run keeps a variant of its matrix."""
    return run_dir / f"{variant}_matrix.json"
