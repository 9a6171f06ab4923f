"""The figures of a general suite from its scored rows. Pure functions; "score" is always there and 0..100.

A figure without rows to compute it from is left out: precision where no reply was yes, and what needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from components.data.suite import PICTURED, group_of, subset_of
from components.evaluation.predictions import Prediction

SuiteFigures = dict[str, float]

COMPAT = "compat"
WITH_PICTURE = "with a picture"
MAIN = ("perception", "cognition", "vanilla", WITH_PICTURE)  # figures that are also given by the release's rule

# MME's subtasks (2306.13394); each is worth 200 points, perception up to 2000 and cognition up to 800.
MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def figures(scoring: str, rows: Sequence[Prediction]) -> SuiteFigures:
    """All figures of a suite with that scoring, a key of `FIGURES`; `rows` must not be empty.

    Where every row has a compat score, the main figures are given by it too, as "compat" and "compat NAME".
    """
    found = FIGURES[scoring](rows)
    if any(row.compat_score is None for row in rows):
        return found
    other = FIGURES[scoring]([replace(row, score=row.compat_score or 0.0) for row in rows])
    return {**found, COMPAT: other["score"], **{f"{COMPAT} {name}": other[name] for name in MAIN if name in other}}


def mean(rows: Sequence[Prediction]) -> SuiteFigures:
    """The mean over rows, and over each subset's rows where there are several subsets."""
    subsets = _by(rows, subset_of)
    parts = {subset: _percent(found) for subset, found in subsets.items()} if len(subsets) > 1 else {}
    return {"score": _percent(rows), **parts}


def pictured(rows: Sequence[Prediction]) -> SuiteFigures:
    """The mean over rows and subsets, and over the rows that have a picture (ScienceQA's SQA-IMG)."""
    seen = [row for row in rows if group_of(row.sample_id).rpartition("/")[2] == PICTURED]
    return {**mean(rows), **({WITH_PICTURE: _percent(seen)} if seen else {})}


def pope(rows: Sequence[Prediction]) -> SuiteFigures:
    """POPE's figures (2305.10355): accuracy, precision, recall and F1 of "yes", and how often yes was said, percent.

    Each is the mean over the settings (random, popular, adversarial), as tables print it; `score` is F1, the paper's
    main figure (0 where nothing was rightly called yes). The released script reads every reply without "no" or "not"
    as yes, and so does this; a reply is judged up to its first period.
    """
    settings = _by(rows, subset_of)
    each = {setting: _of_yes(found) for setting, found in settings.items()}
    names = [name for name in next(iter(each.values())) if all(name in found for found in each.values())]
    means = {name: fmean(found[name] for found in each.values()) for name in names}
    parts = {f"f1 {setting}": found["f1"] for setting, found in each.items()} if len(each) > 1 else {}
    return {"score": means["f1"], **means, **parts}


def said_yes(reply: str) -> bool:
    """How POPE's released script reads a reply: no with "No", "no" or "not" in its first sentence, else yes."""
    words = reply.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def _of_yes(rows: Sequence[Prediction]) -> SuiteFigures:
    said = [said_yes(row.prediction) for row in rows]
    true = [row.answers[0].casefold() == "yes" for row in rows]
    hits = sum(given and wanted for given, wanted in zip(said, true, strict=True))
    right = sum(given == wanted for given, wanted in zip(said, true, strict=True))
    found = {
        "accuracy": 100.0 * right / len(rows),
        "f1": 200.0 * hits / max(sum(said) + sum(true), 1),
        "yes_ratio": 100.0 * sum(said) / len(rows),
    }
    if sum(said):
        found["precision"] = 100.0 * hits / sum(said)
    if sum(true):
        found["recall"] = 100.0 * hits / sum(true)
    return found


def mme(rows: Sequence[Prediction]) -> SuiteFigures:
    """MME's points (2306.13394): of every subtask accuracy plus accuracy+ (both questions of a picture right), 0..200.

    `perception` and `cognition` are the sums over their subtasks; `score` is all points as percent of the points that
    can be had, since suites are averaged. A subtask that MME does not know counts for the score only.
    """
    points: SuiteFigures = {}
    for subtask, found in _by(rows, subset_of).items():
        pictures = _by(found, group_of)
        both = fmean(all(row.score == 1.0 for row in asked) for asked in pictures.values())
        points[subtask] = _percent(found) + 100.0 * both
    sums = {
        name: sum(points[subtask] for subtask in subtasks if subtask in points)
        for name, subtasks in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION))
    }
    return {"score": sum(points.values()) / (2.0 * len(points)), **sums, **points}


def grouped(rows: Sequence[Prediction]) -> SuiteFigures:
    """MMBench's circular evaluation (2307.06281): a question is right when it is right in every order of its choices.

    `vanilla` is the mean over single rows. A suite whose questions come in one order each has the same for both.
    """
    groups = _by(rows, group_of)
    whole = [replace(found[0], sample_id=f"{name}/all", score=_all(found)) for name, found in groups.items()]
    return {**mean(whole), "vanilla": _percent(rows)}


def hallusion(rows: Sequence[Prediction]) -> SuiteFigures:
    """HallusionBench's accuracies (2310.14566): per question (`score`), per figure and per question pair, percent.

    Ids are SUBSET/SET/FIGURE-QUESTION. Per figure: all questions about one figure are right, questions of visual
    supplement without a figure aside. Per pair: one question is right with all figures of its set. The release has
    GPT-4 read the replies; here the first yes or no is read, so an "I cannot tell" is never right.
    """
    pairs = _by(rows, lambda sample_id: f"{group_of(sample_id)}/{_figure_and_question(sample_id)[1]}")
    drawn = [row for row in rows if subset_of(row.sample_id) != "VS" or _figure_and_question(row.sample_id)[0] != "0"]
    by_figure = _by(drawn, lambda sample_id: f"{group_of(sample_id)}/{_figure_and_question(sample_id)[0]}")
    found = {**mean(rows), "question_pair": 100.0 * fmean(_all(asked) for asked in pairs.values())}
    if by_figure:
        found["figure"] = 100.0 * fmean(_all(asked) for asked in by_figure.values())
    return found


def _figure_and_question(sample_id: str) -> tuple[str, str]:
    figure, _, question = sample_id.rpartition("/")[2].partition("-")
    return figure, question


def constraints(rows: Sequence[Prediction]) -> SuiteFigures:
    """The share of fulfilled constraints, mean over rows, and the share of rows that fulfil all (strict in IFEval)."""
    return {**mean(rows), "all_fulfilled": 100.0 * fmean(row.score == 1.0 for row in rows)}


FIGURES: dict[str, Callable[[Sequence[Prediction]], SuiteFigures]] = {
    "mean": mean,
    "pictured": pictured,
    "pope": pope,
    "mme": mme,
    "grouped": grouped,
    "hallusion": hallusion,
    "constraints": constraints,
}


def _by(rows: Sequence[Prediction], key: Callable[[str], str]) -> Mapping[str, list[Prediction]]:
    found: dict[str, list[Prediction]] = {}
    for row in rows:
        found.setdefault(key(row.sample_id), []).append(row)
    return found


def _percent(rows: Sequence[Prediction]) -> float:
    return 100.0 * fmean(row.score for row in rows)


def _all(rows: Sequence[Prediction]) -> float:
    return float(all(row.score == 1.0 for row in rows))
