"""Score released reply files: as the released script does (compat), and by the corrected metric (fixed).

    littoral rescore --suite mme --root MME --predictions results/LaVIN
    littoral rescore --task GQA --annotations questions.json \\
        --predictions merge.jsonl --mode compat
    littoral rescore --task ScienceQA --problems problems.json \\
        --splits pid_splits.json --predictions merge.jsonl --mode fixed

`--suite` takes a general suite with its release and replies in the forms that the releases use
(components/evaluation/suite_replies.py lists them), `--task` a result file of CoIN, COAST, MLLM-CL, TRACE or UCIT.

The last line printed is JSON: of a task `task`, `mode`, `samples`, `correct` (the sum of the scores) and `accuracy`
(percent, not rounded), of a suite `suite`, `samples`, `correct`, `compat_correct` and `figures`. The lines before it
are for people.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("rescore"))

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import ConfigError, DataError
from components.core.visible import print_text
from components.evaluation.released_files import Annotation, ReleasedReply, read_replies
from components.evaluation.rescoring import FileScore, read_annotations, score_file
from components.evaluation.suite_replies import Missing, score_suite
from components.metrics.released.tasks import MODES, Mode, released_task
from pipelines.littoral import read_options


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """What to score and by which rule."""

    predictions: tuple[Path, ...]
    """Files of replies: for a task one of JSON lines with question_id and text, such as the merge.jsonl of a CoIN
    evaluation (of TRACE its JSON with results); for a suite what its release exchanges, folders too. May be gzipped."""
    task: str | None = None
    """A task of CoIN (ScienceQA, TextVQA, ImageNet, GQA, VizWiz, Grounding, VQAv2, OCRVQA) or of COAST (chartqa,
    docvqa, iconqa, medicalqa or pathvqa), or with its benchmark's name in front one of mllm-dcl, mllm-acl, trace or
    ucit (mllm-dcl/medical, trace/meetingbank, ucit/flickr30k), in any case."""
    suite: str | None = None
    """A general suite instead: pope, mme, mmbench, seed-bench, mmmu, mathvista, hallusion-bench, scienceqa-test, ..."""
    root: Path | None = None
    """Of a suite: the folder that holds its release, as prepare.py takes it; pictures are not needed."""
    mode: Mode = "compat"
    """Of a task: compat is the released script to the letter, bugs included; fixed is the corrected metric. The
    other one is printed too."""
    missing: Missing = "refuse"
    """Of a suite: what a row without a reply is."""
    questions: Path | None = None
    """Of a suite: the questions that question_id means, where replies do not say (LLaVA's llava_pope_test.jsonl)."""
    annotations: Path | None = None
    """Of a task: the file that the released script reads: CoIN's test.json or val.json, TextVQA_0.5.1_val.json, GQA's
    testdev_balanced_questions.json, COAST's JSON or JSON lines, TRACE's test.json, UCIT's test_3000.json or for
    captions val_coco_type_3000.json. Not read for ScienceQA."""
    problems: Path | None = None
    """ScienceQA's problems.json."""
    splits: Path | None = None
    """ScienceQA's pid_splits.json, whose split "test" is scored."""
    debug: bool = False
    """A traceback instead of one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Read, score in both modes, print; returns the exit code."""
    command = read_options(Rescore, arguments, name="rescore", description=__doc__)
    if (command.task is None) == (command.suite is None):
        raise ConfigError("Give either --task or --suite.")
    if command.suite is not None:
        return of_suite(command, command.suite)
    return of_task(command, command.task or "")


def of_suite(command: Rescore, suite: str) -> int:
    """A suite's figures by our metric and by its release."""
    if command.root is None:
        raise ConfigError(f"--suite {suite} needs --root, the folder that holds the release.")
    found = score_suite(suite, command.root, command.predictions, questions=command.questions, missing=command.missing)
    print_text(f"{suite}, fixed: {_share(found.correct, found.samples)}")
    if found.compat is not None:
        print_text(f"{suite}, compat: {_share(found.compat, found.samples)}")
    if found.pictured is not None:
        rows, right, compat = found.pictured
        print_text(f"  with a picture, fixed: {_share(right, rows)}")
        if compat is not None:
            print_text(f"  with a picture, compat: {_share(compat, rows)}")
    for name, value in found.figures.items():
        print_text(f"  {name}: {value:.2f}")
    for note in found.notes:
        print_text(f"  {note}")
    print_text(json.dumps(found.record()))
    return 0


def of_task(command: Rescore, task: str) -> int:
    """A task's result file in both modes."""
    if len(command.predictions) != 1:
        raise ConfigError(f"--task {task} takes one file of --predictions, given: {len(command.predictions)}.")
    annotations = read_annotations(task, command.annotations, command.problems, command.splits)
    predictions = read_replies(command.predictions[0])
    if command.annotations is not None and command.problems is not None:
        print_text("ScienceQA is scored from its problems and splits; --annotations is not read.")
    result = score_file(task, annotations, predictions, command.mode)
    show(result)
    (other,) = set(MODES) - {command.mode}
    show_other(task, annotations, predictions, other)
    print_text(json.dumps(result.record()))
    return 0


def _share(right: float, of: int) -> str:
    return f"{right:g} of {of} right, {100 * right / of:.3f} %"


def show(result: FileScore) -> None:
    """One line of figures and one for each note."""
    figures = f"{result.correct:.2f} of {result.samples} right, {result.accuracy:.2f}%"
    print_text(f"{result.task}, {result.mode}: {figures}")
    for note in result.notes:
        print_text(f"  {note}")


def show_other(task: str, annotations: list[Annotation], predictions: list[ReleasedReply], mode: Mode) -> None:
    """Show the mode that was not asked for, or why it cannot be computed, which is not an error."""
    try:
        show(score_file(task, annotations, predictions, mode))
    except DataError as error:
        print_text(f"{released_task(task)}, {mode}: not scored. {error}")
