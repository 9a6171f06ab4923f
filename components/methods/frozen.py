"""Frozen control: learn the first task, then nothing more."""

from __future__ import annotations

from components.methods.options.frozen import FrozenConfig
from components.methods.sequential_lora import SequentialLora


class Frozen(SequentialLora[FrozenConfig]):
    """The frozen control: perfect stability, no plasticity.

    Paper: none.
    Idea: the adapter stops training after the first task, so nothing can be forgotten and nothing is added. A method
        whose later tasks score no higher than this has learned nothing from them.
    Objective: the language-model loss of the first task.
    Overrides: nothing; only the training rows differ.
    Carried between tasks: the adapter as the first task left it.
    Differs: a control, not a published method.
    """
