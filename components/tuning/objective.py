"""What a sweep wants: figures of the partial score matrix and costs, each with its direction."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from components.core.errors import ConfigError
from components.core.options import listed

Mode = Literal["max", "min"]

# Figures that a trial reports after every learned task; all but the last two are those of evaluation/matrix.py.
DIRECTIONS: dict[str, Mode] = {
    "final_average": "max",
    "immediate_average": "max",
    "mean_average": "max",
    "average_over_time": "max",  # of streams without boundaries
    "bwt": "max",
    "forgetting": "min",
    "forgetting_diagonal": "min",
    "forward_transfer": "max",
    "trainable_parameters": "min",
    "train_s": "min",
}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A figure to raise or to lower."""

    name: str
    mode: Mode

    def worth(self, figures: Mapping[str, float]) -> float:
        """The figure, with the other sign where less of it is better: the more, the better."""
        return figures[self.name] if self.mode == "max" else -figures[self.name]


def parse_objective(text: str) -> Objective:
    """`final_average`, or with a direction of its own `train_s:max`; raises `ConfigError`."""
    name, colon, mode = text.partition(":")
    if name not in DIRECTIONS:
        raise ConfigError(f"there is no metric {name!r}; a sweep can use {listed(name, DIRECTIONS)}")
    if colon and mode not in ("max", "min"):
        raise ConfigError(f"the metric {text!r} has the direction {mode!r}; give {name}:max or {name}:min.")
    return Objective(name=name, mode=mode if mode in ("max", "min") else DIRECTIONS[name])


def pareto_front(figures: Mapping[str, Mapping[str, float]], objectives: tuple[Objective, ...]) -> list[str]:
    """Names that no other one beats: as good in every objective and better in one."""
    worths = {name: [goal.worth(own) for goal in objectives] for name, own in figures.items()}

    def beaten(own: list[float]) -> bool:
        return any(other != own and all(map(operator.ge, other, own)) for other in worths.values())

    return [name for name, own in worths.items() if not beaten(own)]
