"""How large the cached vision features of a run are, and whether they are kept: asked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

from components.core.files import size as bytes_text
from components.core.location import Location
from components.models.source import model_source
from components.training.driver import rows_reached
from components.training.plan import Plan
from components.training.vision_cache import feature_bytes, feature_root


@dataclass(frozen=True, kw_only=True)
class FeatureSize:
    """Bytes on disk at most, if no two rows share a picture; 0 where nothing is to be cached."""

    size: int
    limit: int
    wanted: bool
    takes_pictures: bool = True
    store: str = ""
    """Where they go, if that is no disk of this machine."""

    @property
    def fits(self) -> bool:
        """Whether the features are computed once and kept."""
        return self.wanted and self.size <= self.limit

    def described(self) -> str:
        """What becomes of them, and why."""
        if not self.takes_pictures:
            return "none: the model takes no pictures"
        if not self.wanted:
            return "not cached (training.cache_features is off); the tower runs in every step"
        if self.fits:
            return f"cached {f'in {self.store}' if self.store else 'on disk'}, at most {bytes_text(self.size)}"
        return (
            f"not cached: they would take up to {bytes_text(self.size)}, more than training.feature_cache_gb "
            f"{self.limit / 1e9:g}; the tower runs in every step"
        )


def feature_size(plan: Plan) -> FeatureSize:
    """The size for the rows that the run learns from and answers."""
    training = plan.config.training
    pictures = model_source(plan.config.backbone).family_class().takes_pictures()
    wanted = pictures and training.cache_features != "off"
    root = feature_root(plan.run_dir.parent)
    return FeatureSize(
        size=_bytes(plan) if wanted else 0,
        limit=int(training.feature_cache_gb * 1e9),
        wanted=wanted,
        takes_pictures=pictures,
        store=str(root) if isinstance(root, Location) else "",
    )


def _bytes(plan: Plan) -> int:
    return feature_bytes(rows_reached(plan), plan.config.backbone)
