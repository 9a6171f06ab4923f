"""Joint learning: every task's rows at once, the usual upper bound."""

from __future__ import annotations

from components.methods.options.joint import JointConfig
from components.methods.sequential_lora import SequentialLora


class Joint(SequentialLora[JointConfig]):
    """Joint (multitask) learning.

    Paper: none; every benchmark's upper bound ("Multitask" in CoIN).
    Idea: no stream: the union of all training rows, shuffled, in as many updates as the stream has in all.
    Objective: the language-model loss over the union, W = W0 + (alpha / R) up down.
    Overrides: nothing; only the training rows differ. Only the last row of the score matrix is measured.
    Carried between tasks: nothing, there is one training.
    Differs: CoIN takes one epoch over the union; here the budget is the sum of the tasks' budgets, so that methods are
        compared at equal numbers of updates.
    """
