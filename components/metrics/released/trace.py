"""TRACE's eight tasks, each scored twice: `compat` as the released scripts do, `fixed` as the metric is intended.

Source of every compat rule: metrics.py and evaluations/ of github.com/BeyonderXX/TRACE. A reference is one record of
test.json: `prompt` and `answer`. An empty reply or answer scores 0 everywhere. BLEU, which the scripts print besides,
is left out: no figure of the paper is one.
"""

from __future__ import annotations

from components.metrics.released.references import Reference, text_field
from components.metrics.texts import edit_ratio, leading_letter, rouge_l, sari


def accuracy_compat(prediction: str, reference: Reference) -> float:
    """C-STANCE, FOMC, NumGLUE: the reply is the answer, character by character."""
    answer = text_field(reference, "answer")
    return float(bool(prediction) and prediction == answer)


def letter_compat(prediction: str, reference: Reference) -> float:
    """ScienceQA: the reply's first character is the answer's first character."""
    answer = text_field(reference, "answer")
    return float(bool(prediction) and prediction[:1] == answer[:1])


def rouge_compat(prediction: str, reference: Reference) -> float:
    """MeetingBank: F of PyPI rouge's "rouge-l"; 0 where that package finds no sentence."""
    return rouge_l(prediction, [text_field(reference, "answer")])


def edit_compat(prediction: str, reference: Reference) -> float:
    """Py150: fuzzywuzzy's ratio, which is rounded to whole percent."""
    return round(100 * edit_ratio(prediction, [text_field(reference, "answer")])) / 100


def sari_compat(prediction: str, reference: Reference) -> float:
    """20Minuten: SARI against the whole prompt, its instruction included. An empty reply still earns what it deletes.

    One is 0 here all the same: the released average has never met one, since its sampling hardly gives one.
    """
    return sari(prediction, [text_field(reference, "answer")], text_field(reference, "prompt"))


def letter_fixed(prediction: str, reference: Reference) -> float:
    """The reply chooses the answer's letter, in whatever style."""
    prompt = reference.get("prompt")
    return leading_letter(prediction, [text_field(reference, "answer")], prompt if isinstance(prompt, str) else "")


def edit_fixed(prediction: str, reference: Reference) -> float:
    """The edit ratio, not rounded."""
    return edit_ratio(prediction, [text_field(reference, "answer")])
