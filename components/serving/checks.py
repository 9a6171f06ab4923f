"""What can be said of a run before anything is started for it."""

from __future__ import annotations

from components.core.errors import ConfigError
from components.exporting.learned import LearnedRun
from components.models.source import model_source


def require_servable(learned: LearnedRun) -> None:
    """Raise `ConfigError` where the base weights are not those that the run was trained on."""
    backbone = learned.config.backbone.name
    if model_source(learned.config.backbone).fingerprint() != learned.checkpoint.state.get("backbone"):
        raise ConfigError(
            f"the weights of backbone {backbone!r} are not those that run {learned.run.path.name} was trained on; say "
            "with --backbone where those are."
        )
