"""Light on purpose (no torch): how replies to test rows come about, by the names that options and files use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

ChosenBy = Literal["acc", "acc_norm"]
Replies = Literal["generated", "acc", "acc_norm"]
WORDS: dict[Replies, str] = {
    "generated": "generated",
    "acc": "the option of the highest log-likelihood (acc), where a row has options",
    "acc_norm": "the option of the highest log-likelihood per character (acc_norm), where a row has options",
}


def noted(replies: Replies) -> dict[str, str]:
    """What files of scores say of it; nothing where all replies are generated, as earlier versions did."""
    return {} if replies == "generated" else {"replies": replies}


def likeliest(by: ChosenBy, options: Sequence[str], log_likelihoods: Sequence[float]) -> int:
    """The place of the option that is chosen; the first one of several that are equal.

    acc: the largest sum over an option's tokens; acc_norm: over its number of characters. Both as lm-evaluation-harness
    defines them (EleutherAI, `multiple_choice` tasks).
    """
    sizes = [1] * len(options) if by == "acc" else [len(option) for option in options]
    scores = [found / size for found, size in zip(log_likelihoods, sizes, strict=True)]
    return scores.index(max(scores))
