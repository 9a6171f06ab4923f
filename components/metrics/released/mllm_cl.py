"""MLLM-CL's domains and abilities, each scored twice: `compat` as the released scripts do, `fixed` as intended.

Source of every compat rule: ETrain/Eval/LLaVA/CoIN of github.com/bjzhb666/MLLM-CL (MCITlib carries the same): eval_ai2d
(remote sensing, driving), eval_pvqa (medical), eval_finvis, eval_sci, eval_ocr and eval_sat. Mathematics is scored with
a language model's help and the GUI tasks by a server, so they have no rule. A reference is one record of test.json:
`answer`, for science `image` and `text`, for OCR `answer_type`.
"""

from __future__ import annotations

from components.metrics.released.references import Reference, accepted_answers, text_field
from components.metrics.scorers import exact, recall
from components.metrics.texts import contains, formula

CHOICE_PICTURES = ("AI2D", "TQA", "VQA", "SciVerse")  # science: what such pictures' names begin with; the rest is MapQA
LISTED = "Which states"  # MapQA: a question whose answer is a list
FORMULA = "Handwritten Mathematical Expression Recognition"  # OCRBench: the `answer_type` of formulas


def words_compat(prediction: str, reference: Reference) -> float:
    """Remote sensing and driving: the answer occurs in the reply, in lower case.

    An answer of one word loses its periods, and in a reply of several words it needs a space in front, or a space,
    period or comma behind. So "no" is right in "nothing here" (never) and in "there is none" (a space in front).
    """
    if "Unanswerable" in prediction:
        return 0.0
    given, answer = prediction.lower(), text_field(reference, "answer").lower()
    if " " in answer:
        return float(answer in given)
    answer = answer.replace(".", "")
    forms = (f" {answer}", f"{answer} ", f"{answer}.", f"{answer},") if " " in given else (answer,)
    return float(any(form in given for form in forms))


def medical_compat(prediction: str, reference: Reference) -> float:
    """The answer occurs in the reply, in lower case, inside words too."""
    return float("Unanswerable" not in prediction and text_field(reference, "answer").lower() in prediction.lower())


def finance_compat(prediction: str, reference: Reference) -> float:
    """The reply without spaces and periods is the answer, in lower case; the answer is left as it is."""
    bare = prediction.lower().replace(" ", "").replace(".", "")
    return float("Unanswerable" not in prediction and bare == text_field(reference, "answer").lower())


def science_compat(prediction: str, reference: Reference) -> float:
    """Multiple choice by equality; of MapQA the share of listed states that the reply lists, or else occurrence.

    A list's parts are what stands between commas, spaces included: of "Ohio, Utah" the second is " utah".
    """
    if "Unanswerable" in prediction:
        return 0.0
    given, answer = prediction.lower(), text_field(reference, "answer").lower()
    if is_choice_picture(text_field(reference, "image")):
        return float(given == answer)
    if LISTED in text_field(reference, "text"):
        states = answer.split(",")
        return sum(state in given.split(",") for state in states) / len(states)
    return float(answer in given)


def ocr_compat(prediction: str, reference: Reference) -> float:
    """OCRBench: an answer occurs in the reply, in lower case; of a formula, with spaces and line breaks removed."""
    if reference.get("answer_type") == FORMULA:
        given = prediction.strip().replace(" ", "").replace("\n", "")
        return float(any(one.strip().replace(" ", "").replace("\n", "") in given for one in _several(reference)))
    given = prediction.lower().strip().replace("\n", "")
    return float(any(one.lower().strip().replace("\n", "") in given for one in _several(reference)))


def perception_compat(prediction: str, reference: Reference) -> float:
    """The answer occurs in the reply, in lower case, both without spaces, line breaks and periods."""
    return float(_bare(text_field(reference, "answer")) in _bare(prediction))


def exact_fixed(prediction: str, reference: Reference) -> float:
    """Equality up to case, spaces and a final period. Longer replies count in the `repaired` variant only."""
    return exact(prediction, _several(reference))


def science_fixed(prediction: str, reference: Reference) -> float:
    """Multiple choice by equality; of MapQA the share of listed states that the reply names, or else occurrence."""
    answers = _several(reference)
    if is_choice_picture(text_field(reference, "image")):
        return exact(prediction, answers)
    return (recall if LISTED in text_field(reference, "text") else contains)(prediction, answers)


def ocr_fixed(prediction: str, reference: Reference) -> float:
    """An answer occurs in the reply as whole words; of a formula, with all white space removed."""
    return (formula if reference.get("answer_type") == FORMULA else contains)(prediction, _several(reference))


def is_choice_picture(image: str) -> bool:
    """Whether a science question with this picture is multiple choice."""
    return image.rpartition("/")[2].partition("_")[0] in CHOICE_PICTURES


def _several(reference: Reference) -> list[str]:
    """`answer`, one text or a list of them."""
    answer = reference.get("answer")
    return accepted_answers({"answers": answer} if isinstance(answer, list) else reference)


def _bare(text: str) -> str:
    return text.lower().strip().replace(" ", "").replace("\n", "").replace(".", "")
