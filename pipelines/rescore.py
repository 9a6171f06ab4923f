"""Score a result file of CoIN's or COAST's tasks again: as the released script does, and correctly.

    python pipelines/rescore.py --task GQA --annotations questions.json --predictions merge.jsonl --mode compat
    python pipelines/rescore.py --task ScienceQA --problems problems.json --splits pid_splits.json \\
        --predictions merge.jsonl --mode fixed

The last line printed is JSON with `task`, `mode`, `samples`, `correct` (the sum of the scores) and `accuracy` (percent,
not rounded; the released scripts print it with two decimals). The lines before it are for people.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from components.errors import DataError, LittoralError
from components.evaluation.released_files import Annotation, Prediction, read_predictions
from components.evaluation.rescoring import FileScore, read_annotations, score_file
from components.evaluation.scorers.released import MODES, Mode, released_task
from components.options import require_paths
from components.starting import print_anything


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """What to score and by which rule."""

    task: str
    """A task of CoIN (ScienceQA, TextVQA, ImageNet, GQA, VizWiz, Grounding, VQAv2, OCRVQA) or of COAST (chartqa,
    docvqa, iconqa, medicalqa or pathvqa), in any case."""
    predictions: Path
    """JSON lines with question_id and text, such as the merge.jsonl of a CoIN evaluation."""
    mode: Mode
    """compat: the released script to the letter, bugs included. fixed: the metric as it is meant."""
    annotations: Path | None = None
    """The file that the released script reads: CoIN's test.json or val.json, TextVQA_0.5.1_val.json, GQA's
    testdev_balanced_questions.json, COAST's JSON or JSON lines. Not read for ScienceQA."""
    problems: Path | None = None
    """ScienceQA's problems.json."""
    splits: Path | None = None
    """ScienceQA's pid_splits.json, whose split "test" is scored."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(command: Rescore) -> int:
    """Read, score in both modes, print; returns the exit code."""
    require_paths(command)
    annotations = read_annotations(command.task, command.annotations, command.problems, command.splits)
    predictions = read_predictions(command.predictions)
    if command.annotations is not None and command.problems is not None:
        print("ScienceQA is scored from its problems and splits; --annotations is not read.")
    result = score_file(command.task, annotations, predictions, command.mode)
    show(result)
    (other,) = set(MODES) - {command.mode}
    show_other(command.task, annotations, predictions, other)
    print(json.dumps(result.record()))
    return 0


def show(result: FileScore) -> None:
    """One line of figures and one for each note."""
    figures = f"{result.correct:.2f} of {result.samples} right, {result.accuracy:.2f}%"
    print(f"{result.task}, {result.mode}: {figures}")
    for note in result.notes:
        print(f"  {note}")


def show_other(task: str, annotations: list[Annotation], predictions: list[Prediction], mode: Mode) -> None:
    """The same in the mode that was not asked for, or why it cannot be had; that is no reason to fail."""
    try:
        show(score_file(task, annotations, predictions, mode))
    except DataError as error:
        print(f"{released_task(task)}, {mode}: not scored. {error}")


if __name__ == "__main__":
    print_anything()
    arguments = tyro.cli(Rescore, prog="rescore.py", description=__doc__)
    try:
        sys.exit(main(arguments))
    except LittoralError as error:
        if arguments.debug:
            raise
        sys.exit(f"error: {error}")
