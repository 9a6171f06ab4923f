"""CoIN's eight tasks, each scored twice: `compat` as the released scripts do, `fixed` as the metric is intended.

Source of every compat rule: the evaluation scripts in CoIN's repository (github.com/zackschen/CoIN, folder
ETrain/Eval/LLaVA/CoIN; LCIA's repository carries the same ones). Their bugs are part of the published figures, so
compat keeps them. A reference is one record of the annotation file that the script reads. Rules on whole files (which
lines count, how predictions find their references) are in `components.evaluation.rescoring`.
"""

from __future__ import annotations

import math
import re
from typing import cast

from components.core.errors import DataError
from components.metrics.choice import chosen_letter
from components.metrics.released.evalai import processed, soft_accuracy
from components.metrics.released.references import Reference, list_field, shown, ten_answers, text_field
from components.metrics.scorers import IOU_THRESHOLD, Box, box_iou, exact, parse_box

LETTERS = ("A", "B", "C", "D", "E")
_SINGLE = re.compile(r"\b(\w)\b")


def scienceqa_compat(prediction: str, reference: Reference) -> float:
    """1 when the letter found in the reply is the answer's; `reference` is a problem (`choices`, `answer` an index).

    The letter is the reply itself when it is one of A..E; else its first character when that is one of A..E and ". "
    follows; else the first word of one character, in upper case. So "I think B" is read as I, and "a dog" as A.
    """
    if prediction in LETTERS:
        letter = prediction
    elif prediction[:1] in LETTERS and prediction[1:3] == ". ":
        letter = prediction[0]
    else:
        single = _SINGLE.search(prediction)
        letter = single[1].upper() if single else ""
    return float(letter == _right_letter(reference))


def scienceqa_fixed(prediction: str, reference: Reference) -> float:
    """1 when the reply chooses the right letter, in whatever style, the choice's words included (`chosen_letter`)."""
    choices = list_field(reference, "choices") if "choices" in reference else []
    options: dict[str, str] = dict(zip(LETTERS, map(str, choices), strict=False))
    return float(chosen_letter(prediction, options) == _right_letter(reference))


def textvqa_compat(prediction: str, reference: Reference) -> float:
    """VQA soft accuracy against the ten `answers`. An empty reply is as right as an answer that processing empties."""
    return soft_accuracy(prediction, ten_answers(reference))


def textvqa_fixed(prediction: str, reference: Reference) -> float:
    """The same, except that a blank reply is wrong."""
    return soft_accuracy(prediction, ten_answers(reference)) if prediction.strip() else 0.0


def imagenet_compat(prediction: str, reference: Reference) -> float:
    """1 when the reply is part of `answer` or `answer` is part of the reply, letter case counting. Empty is right."""
    answer = text_field(reference, "answer")
    return float(answer in prediction or prediction in answer)


def exact_fixed(prediction: str, reference: Reference) -> float:
    """1 when the reply is the whole `answer`; case, repeated spaces and a final period do not count. Empty is wrong."""
    return exact(prediction, [text_field(reference, "answer")])


def gqa_compat(prediction: str, reference: Reference) -> float:
    """1 when the reply equals `answer` after losing its final periods, its case and one leading space.

    The answer is left as it is: one that is not in lower case cannot be met.
    """
    text = prediction.rstrip(".").lower()
    return float(text.removeprefix(" ") == text_field(reference, "answer"))


def same_upper_compat(prediction: str, reference: Reference) -> float:
    """VizWiz, VQAv2, UCIT: 1 when the reply equals the single `answer` in upper case, character by character."""
    return float(prediction.upper() == text_field(reference, "answer").upper())


def vqa_fixed(prediction: str, reference: Reference) -> float:
    """VizWiz and VQAv2: soft accuracy where the record holds ten `answers`, else equality with the processed `answer`.

    A blank reply is wrong.
    """
    if not prediction.strip():
        return 0.0
    if "answers" in reference:
        return soft_accuracy(prediction, ten_answers(reference))
    return float(processed(prediction) == processed(text_field(reference, "answer")))


def ocrvqa_compat(prediction: str, reference: Reference) -> float:
    """1 when the reply equals `answer` in lower case; one that holds "Unanswerable" is skipped, so counted as wrong."""
    answer = text_field(reference, "answer")
    return float("Unanswerable" not in prediction and prediction.lower() == answer.lower())


def grounding_compat(prediction: str, reference: Reference) -> float:
    """1 when the boxes overlap by more than one half, after the released parser has cut the reply's.

    One leading space and all brackets go, then the first and the last character as well: "[0.12,0.34,0.56,0.97]" is
    read as .12, 0.34, 0.56, 0.9. Anything that is then not four numbers is wrong. `answer_bbox` is read whole. Both
    boxes are multiplied by the longer side of `size` ([width, height]; without it, by 1) before they are compared.
    """
    target = _reference_box(reference)
    scale = max(_size(reference), default=1)
    bare = prediction.removeprefix(" ").replace("[", "").replace("]", "")
    try:
        box = [float(part) for part in bare[1:-1].split(",")]
    except ValueError:
        return 0.0
    if len(box) != 4:
        return 0.0
    return float(_released_iou([value * scale for value in box], [value * scale for value in target]) > IOU_THRESHOLD)


def grounding_fixed(prediction: str, reference: Reference) -> float:
    """1 when the reply's box overlaps `answer_bbox` by more than one half.

    The reply's box is its first "[x1,y1,x2,y2]", or the four numbers that are all of it; it needs x1 < x2 and y1 < y2.
    """
    x1, y1, x2, y2 = _reference_box(reference)
    if not (x1 < x2 and y1 < y2 and all(map(math.isfinite, (x1, y1, x2, y2)))):
        raise DataError(f'"answer_bbox" of a reference must have x1 < x2 and y1 < y2, given: {(x1, y1, x2, y2)}.')
    given = parse_box(prediction) or parse_box(f"[{prediction.strip()}]")
    return float(given is not None and box_iou(given, (x1, y1, x2, y2)) > IOU_THRESHOLD)


def _right_letter(reference: Reference) -> str:
    """The letter of `answer`: an index below the number of `choices` (problems.json), or a letter (test.json)."""
    answer = reference.get("answer")
    if isinstance(answer, str):
        if answer in LETTERS:
            return answer
    elif isinstance(answer, int) and 0 <= answer < min(len(list_field(reference, "choices")), len(LETTERS)):
        return LETTERS[answer]
    raise DataError(
        f'"answer" of a problem must be the index of one of its at most 5 "choices", given: {shown(answer)}.'
    )


def _reference_box(reference: Reference) -> Box:
    text = text_field(reference, "answer_bbox")
    try:
        x1, y1, x2, y2 = (float(part) for part in text.replace("[", "").replace("]", "").split(","))
    except ValueError:
        raise DataError(f"\"answer_bbox\" of a reference must be '[x1,y1,x2,y2]', given: {shown(text)}.") from None
    return x1, y1, x2, y2


def _size(reference: Reference) -> list[int | float]:
    if "size" not in reference:
        return []
    size = list_field(reference, "size")
    if len(size) != 2 or not all(isinstance(side, int | float) and 0 < side < 1e9 for side in size):
        raise DataError(f'"size" of a reference must be [width, height], given: {shown(size)}.')
    return cast("list[int | float]", size)


def _released_iou(given: list[float], target: list[float]) -> float:
    """Intersection over union without any check of the boxes: those of no or negative area just fail to overlap.

    The order of the arguments of min and max decides what "nan" in a reply does, and is the released one.
    """
    width = max(0, min(given[2], target[2]) - max(given[0], target[0]))
    height = max(0, min(given[3], target[3]) - max(given[1], target[1]))
    areas = (given[2] - given[0]) * (given[3] - given[1]) + (target[2] - target[0]) * (target[3] - target[1])
    union = areas - width * height
    return width * height / union if union > 0 else 0.0
