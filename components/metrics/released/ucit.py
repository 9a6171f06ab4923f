"""UCIT's tasks, each scored twice: `compat` as the released scripts do, `fixed` as intended.

Source of the rule for answers: eval_deepseek_r1.py of github.com/Ghy0501/HiDe-LLaVA (MCITlib carries the same), whose
part that asks a language model is switched off. Captions are scored as whole files (`captions.caption_figures`).
"""

from __future__ import annotations

from components.metrics.captions import caption
from components.metrics.released.references import Reference, accepted_answers, text_field
from components.metrics.scorers import exact


def answer_compat(prediction: str, reference: Reference) -> float:
    """1 when the reply equals the answer in upper case, character by character."""
    return float(prediction.upper() == text_field(reference, "answer").upper())


def answer_fixed(prediction: str, reference: Reference) -> float:
    """Equality up to case, repeated spaces and a final period."""
    return exact(prediction, [text_field(reference, "answer")])


def caption_fixed(prediction: str, reference: Reference) -> float:
    """ROUGE-L of one caption against `answers`."""
    return caption(prediction, accepted_answers(reference))
