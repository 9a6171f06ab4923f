"""One prediction of a released benchmark's task, scored by the release's own rule or by the metric it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from components.errors import ConfigError, DataError
from components.evaluation.scorers import coast, coin
from components.evaluation.scorers.references import Reference, Rule

Mode = Literal["compat", "fixed"]
MODES: tuple[Mode, ...] = ("compat", "fixed")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How one task's predictions are scored: to the letter of its release, and correctly."""

    compat: Rule
    fixed: Rule

    def of(self, mode: str) -> Rule:
        """The rule of a mode; raises `ConfigError` for an unknown one."""
        if mode not in MODES:
            raise ConfigError(f"There is no scoring mode {mode!r}; allowed are {' and '.join(MODES)}.")
        return self.compat if mode == "compat" else self.fixed


COIN: dict[str, Rules] = {
    "scienceqa": Rules(compat=coin.scienceqa_compat, fixed=coin.scienceqa_fixed),
    "textvqa": Rules(compat=coin.textvqa_compat, fixed=coin.textvqa_fixed),
    "imagenet": Rules(compat=coin.imagenet_compat, fixed=coin.exact_fixed),
    "gqa": Rules(compat=coin.gqa_compat, fixed=coin.exact_fixed),
    "vizwiz": Rules(compat=coin.same_upper_compat, fixed=coin.vqa_fixed),
    "grounding": Rules(compat=coin.grounding_compat, fixed=coin.grounding_fixed),
    "vqav2": Rules(compat=coin.same_upper_compat, fixed=coin.vqa_fixed),
    "ocrvqa": Rules(compat=coin.ocrvqa_compat, fixed=coin.exact_fixed),
}
COAST: dict[str, Rules] = {
    "chartqa": Rules(compat=coast.chartqa, fixed=coast.chartqa),
    "docvqa": Rules(compat=coast.docvqa, fixed=coast.docvqa),
    "iconqa": Rules(compat=coast.exact_match, fixed=coast.exact_match),
    "medicalqa": Rules(compat=coast.exact_match, fixed=coast.exact_match),
}
RELEASED: dict[str, Rules] = COIN | COAST
_OTHER_NAMES = {"pathvqa": "medicalqa"}


def released_task(name: str) -> str:
    """The key in `RELEASED` of a task's name in any case; raises `ConfigError` for an unknown one."""
    key = name.casefold()
    key = _OTHER_NAMES.get(key, key)
    if key not in RELEASED:
        allowed = ", ".join([*RELEASED, *_OTHER_NAMES])
        raise ConfigError(f"There is no released task {name!r}; allowed are {allowed}.")
    return key


def score_item(task: str, prediction: str, reference: Reference, mode: str) -> float:
    """0..1: the score of one prediction of a CoIN or COAST task.

    `reference` is one record of the annotation file that the release's script reads: ScienceQA a problem of
    problems.json, TextVQA a record with ten `answers`, Grounding one with `answer_bbox` and `size`, the others one with
    `answer`. `mode` "compat" follows the released script to the letter, bugs included; "fixed" is the metric as it is
    meant. COAST has no released script: both modes are the source dataset's metric.

    Raises `ConfigError` for an unknown task or mode, `DataError` for a reference that the rule cannot read.
    """
    return RELEASED[released_task(task)].of(mode)(prediction, reference)


def compat_row_score(task: str, prediction: str, answers: Sequence[str]) -> float | None:
    """0..1: a test row's score by the released script's rule for a task of that name.

    None for other tasks, and where the rule needs more than the row's accepted answers (TextVQA: ten people's).
    """
    rules = RELEASED.get(_OTHER_NAMES.get(task, task))
    if rules is None or not answers:
        return None
    reference = {"answer": answers[0], "answer_bbox": answers[0], "answers": list(answers)}
    try:
        return rules.compat(prediction, reference)
    except DataError:
        return None
