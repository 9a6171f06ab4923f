"""One prediction of a released benchmark's task, scored by the release's own rule or by the intended metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from components.core.errors import ConfigError, DataError
from components.metrics.captions import caption, caption_figures, java_home
from components.metrics.released import coast, coin, mllm_cl, trace
from components.metrics.released.references import Rule, accepted_answers

Mode = Literal["compat", "fixed"]
MODES: tuple[Mode, ...] = ("compat", "fixed")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How one task's replies are scored: `compat` by the released script to the letter, bugs included; `fixed` as the
    metric is intended.

    A rule takes the reply and one record of the annotation file that the script reads: ScienceQA a problem of
    problems.json, TextVQA a record with ten `answers`, Grounding one with `answer_bbox` and `size`, the others one with
    `answer`. It raises `DataError` for a record that it cannot read. COAST has no released script: its compat is the
    source dataset's metric. `compat` is None for captions, whose released figure is of a whole file, not of its rows.
    """

    compat: Rule | None
    fixed: Rule

    def of(self, mode: str) -> Rule:
        """The rule of a mode; raises `ConfigError` for an unknown one, and where rows have none."""
        if mode not in MODES:
            raise ConfigError(f"There is no scoring mode {mode!r}; allowed are {' and '.join(MODES)}.")
        rule = self.compat if mode == "compat" else self.fixed
        if rule is None:
            raise ConfigError("The released figure of captions belongs to a whole file; score the file.")
        return rule


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
    "chartqa": Rules(compat=coast.chartqa_compat, fixed=coast.chartqa_fixed),
    "docvqa": Rules(compat=coast.docvqa, fixed=coast.docvqa),
    "iconqa": Rules(compat=coast.exact_match, fixed=coast.exact_match),
    "medicalqa": Rules(compat=coast.exact_match, fixed=coast.exact_match),
}
MLLM_DCL: dict[str, Rules] = {
    "remote-sensing": Rules(compat=mllm_cl.words_compat, fixed=mllm_cl.exact_fixed),
    "medical": Rules(compat=mllm_cl.medical_compat, fixed=mllm_cl.exact_fixed),
    "driving": Rules(compat=mllm_cl.words_compat, fixed=mllm_cl.exact_fixed),
    "science": Rules(compat=mllm_cl.science_compat, fixed=mllm_cl.science_fixed),
    "finance": Rules(compat=mllm_cl.finance_compat, fixed=mllm_cl.exact_fixed),
}
MLLM_ACL: dict[str, Rules] = {
    "ocr": Rules(compat=mllm_cl.ocr_compat, fixed=mllm_cl.ocr_fixed),
    "perception": Rules(compat=mllm_cl.perception_compat, fixed=mllm_cl.exact_fixed),
}
_EXACT = Rules(compat=trace.accuracy_compat, fixed=coin.exact_fixed)
TRACE: dict[str, Rules] = {
    "c-stance": _EXACT,
    "fomc": _EXACT,
    "meetingbank": Rules(compat=trace.rouge_compat, fixed=trace.rouge_compat),
    "py150": Rules(compat=trace.edit_compat, fixed=trace.edit_fixed),
    "scienceqa": Rules(compat=trace.letter_compat, fixed=trace.letter_fixed),
    "numglue-cm": _EXACT,
    "numglue-ds": _EXACT,
    "20minuten": Rules(compat=trace.sari_compat, fixed=trace.sari_compat),
}
# UCIT's rule for answers is that of eval_deepseek_r1.py of github.com/Ghy0501/HiDe-LLaVA (MCITlib carries the same),
# without its part that asks a language model, off there too. Captions are scored as files (`captions.caption_figures`).
_ANSWER = Rules(compat=coin.same_upper_compat, fixed=coin.exact_fixed)
_CAPTION = Rules(compat=None, fixed=lambda reply, record: caption(reply, accepted_answers(record)))
UCIT: dict[str, Rules] = {
    "imagenet-r": _ANSWER,
    "arxivqa": _ANSWER,
    "vizwiz-caption": _CAPTION,
    "iconqa": _ANSWER,
    "clevr-math": _ANSWER,
    "flickr30k": _CAPTION,
}
# Benchmarks whose tasks are named with their benchmark, since some share a name with CoIN's or COAST's.
_NAMED = {"mllm-dcl": MLLM_DCL, "mllm-acl": MLLM_ACL, "trace": TRACE, "ucit": UCIT}
RELEASED: dict[str, Rules] = (
    COIN | COAST | {f"{name}/{task}": rules for name, tasks in _NAMED.items() for task, rules in tasks.items()}
)
_OTHER_NAMES = {"pathvqa": "medicalqa"}


def released_task(name: str) -> str:
    """The key in `RELEASED` of a task's name in any case; raises `ConfigError` for an unknown one."""
    key = name.casefold()
    key = _OTHER_NAMES.get(key, key)
    if key not in RELEASED:
        allowed = ", ".join([*RELEASED, *_OTHER_NAMES])
        raise ConfigError(f"There is no released task {name!r}; allowed are {allowed}.")
    return key


def is_caption_task(task: str) -> bool:
    """Whether a key of `RELEASED` names captions, which are scored as whole files."""
    return RELEASED[task] is _CAPTION


def compat_row_score(
    task: str, prediction: str, answers: Sequence[str], *, stream: str = "", prompt: str = "", metric: str = ""
) -> float | None:
    """0..1: a test row's score by the released script's rule for a task of that name in a stream of that name.

    None for other tasks, and where the rule needs more than the row holds (TextVQA: ten people's answers). A stream
    that is no order or variant of a named benchmark is taken for CoIN or COAST. `metric` is the row's: MLLM-CL's
    readers choose it by the picture's and the question's kind, which the rules look at.
    """
    rules = _of_stream(stream).get(_OTHER_NAMES.get(task, task))
    if rules is None or rules.compat is None or not answers:
        return None
    reference: dict[str, object] = {
        "answer": answers[0] if len(answers) == 1 or metric != "contains" else list(answers),
        "answer_bbox": answers[0],
        "answers": list(answers),
        "prompt": prompt,
        "text": prompt,
        "image": f"{mllm_cl.CHOICE_PICTURES[0]}_" if metric == "exact" else "",
        "answer_type": mllm_cl.FORMULA if metric == "formula" else "",
    }
    try:
        return rules.compat(prediction, reference)
    except DataError:
        return None


def compat_task_figures(
    task: str, replies: Sequence[str], answers: Sequence[Sequence[str]], *, stream: str
) -> dict[str, float]:
    """Of a caption task in a stream of that name: the released metrics over all its rows, times 100; else empty.

    `MEAN` among them is the released figure; without a Java it is not there (see `captions`).
    """
    rules = _of_stream(stream).get(task)
    if rules is None or rules is not _CAPTION or not replies:
        return {}
    return caption_figures(replies, answers, java_home())


def _of_stream(stream: str) -> dict[str, Rules]:
    """The rules by task of the benchmark that a stream belongs to; its orders and variants are its name and "-..."."""
    named = next((name for name in _NAMED if stream == name or stream.startswith(f"{name}-")), None)
    return COIN | COAST if named is None else _NAMED[named]
