"""What a person sees: plans, lines, live bars, tables, and the time left."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
import rich.console

from components.console.eta import PlannedTask, TimeLeft, duration_text
from components.console.live import Console
from components.core.events import EvaluationProgress, Note, RowScored, StepDone, TaskStarted, UpdateSkipped
from components.evaluation.headline import headline
from components.evaluation.matrix import ZERO_SHOT, ScoreMatrix

PLAN = [
    PlannedTask(name="chartqa", train_rows=400, test_rows=100, num_updates=100),
    PlannedTask(name="doc[vqa]", train_rows=400, test_rows=100, num_updates=100),
]


class Clock:
    """Seconds that pass only when told to."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def screen(clock: Clock, *, width: int = 100, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    out = rich.console.Console(file=text, width=width, force_terminal=terminal, highlight=False, legacy_windows=False)
    return Console(out, clock=clock), text


def started(index: int, num_updates: int = 100) -> TaskStarted:
    return TaskStarted(
        index=index,
        task=PLAN[index].name,
        num_samples=400,
        num_updates=num_updates,
        trainable_parameters=5_000,
        total_parameters=1_000_000,
        start_s=0.25,
    )


def step(index: int, update: int) -> StepDone:
    return StepDone(
        index=index,
        task=PLAN[index].name,
        update=update,
        num_updates=100,
        loss=1.25,
        parts={},
        learning_rate=1e-3,
        grad_norm=1.0,
        samples_per_s=32.0,
        data_wait_s=0.0,
    )


def row(learned: int, scores: list[float | None], evaluate_s: float = 10.0) -> RowScored:
    names = [task.name for task in PLAN]
    return RowScored(
        tasks_learned=learned,
        after="zero-shot" if learned == 0 else names[learned - 1],
        scores=dict(zip(names, scores, strict=True)),
        routing_accuracy=None,
        slot_usage=None,
        train_s=100.0,
        evaluate_s=evaluate_s,
        peak_memory_bytes=3 * 2**30,
        checkpoint_path=None,
    )


def test_the_plan_warns_of_few_updates_once() -> None:
    console, text = screen(Clock())
    tiny = PlannedTask(name="tiny", train_rows=32, test_rows=16, num_updates=4)
    untrained = PlannedTask(name="untrained", train_rows=32, test_rows=16, num_updates=0)
    few = [PLAN[0], tiny, untrained]
    console.print_plan(few, {"method": "lora", "memory": "2 GiB"})
    lines = text.getvalue().splitlines()
    assert lines[0] == "method: lora"
    assert any(line.split() == ["1.", "chartqa", "400", "100", "100"] for line in lines)
    assert text.getvalue().count("tiny gets only 4 updates") == 1
    assert text.getvalue().count("gets only") == 1
    console.handle(started(0, num_updates=20))
    console.handle(started(0, num_updates=20))
    assert text.getvalue().count("chartqa gets only 20 updates") == 1


def test_quiet_lines_come_every_ten_seconds() -> None:
    clock = Clock()
    console, text = screen(clock)
    console.print_plan(PLAN)
    console.handle(started(0))
    before = len(text.getvalue().splitlines())
    for update in range(1, 101):
        clock.now_s += 0.25
        console.handle(step(0, update))
    lines = text.getvalue().splitlines()[before:]
    assert len(lines) == 2
    assert lines[0].startswith("task 1/2 chartqa  update 40/100  loss 1.2500  32.0 samples/s  at least 40 s left")
    assert "\x1b" not in text.getvalue()


def test_a_terminal_gets_a_live_bar_and_names_are_not_markup() -> None:
    console, text = screen(Clock(), terminal=True)
    console.print_plan(PLAN)
    console.handle(started(1))
    console.handle(step(1, 7))
    console.close()
    console.handle(EvaluationProgress(after="doc[vqa]", task="chartqa", done=5, total=100))
    console.close()
    console.handle(EvaluationProgress(after=ZERO_SHOT, task="chartqa", done=5, total=100))
    console.close()
    console.close()
    assert "scoring before training: chartqa 5/100" in text.getvalue()
    assert "task 2/2 doc[vqa]  update 7/100" in text.getvalue()
    assert "scoring after doc[vqa]: chartqa 5/100" in text.getvalue()


def test_rows_and_notes_are_lines() -> None:
    console, text = screen(Clock(), width=160)
    console.print_plan(PLAN, zero_shot=True)
    console.handle(row(0, [1.0, 2.0]))
    console.handle(row(1, [61.04, None]))
    console.handle(Note(text="plain [b]text[/b]"))
    console.handle(Note(text="take care", warning=True))
    console.handle(UpdateSkipped(index=1, task="doc[vqa]", update=7, cause="its loss is nan", skipped=2, allowed=5))
    assert (
        "Warning: update 7 of task doc[vqa] was skipped, because its loss is nan (2 of at most 5)\n" in text.getvalue()
    )
    assert "Zero-shot: chartqa 1.0  doc[vqa] 2.0  (scored 10 s, peak memory 3.0 GiB" in text.getvalue()
    assert "After chartqa: chartqa 61.0  (trained 2 min, scored 10 s, " in text.getvalue()
    assert "plain [b]text[/b]\n" in text.getvalue()
    console.handle(row(2, [61.0, 50.0]))  # the last one: 0 s left is not said
    assert text.getvalue().endswith("peak memory 3.0 GiB)\n")
    assert "Warning: take care\n" in text.getvalue()


def test_an_event_before_any_plan_is_shown_too() -> None:
    console, text = screen(Clock())
    console.handle(started(1))
    console.handle(row(1, [50.0, None]))
    assert (
        "Task 2 doc[vqa]: 400 rows, 100 updates, 5,000 trainable parameters (0.50%), ready in 0.2 s" in text.getvalue()
    )


@pytest.mark.parametrize("width", [40, 120])
def test_the_final_matrix(width: int) -> None:
    console, text = screen(Clock(), width=width)
    matrix = ScoreMatrix(["chartqa", "doc[vqa]"], [[4.0, 2.0], [60.0, None], [40.0, 80.0]])
    console.print_matrix(matrix, {"oracle": ScoreMatrix(["chartqa", "doc[vqa]"], [[60.0, None], [60.0, 80.0]])})
    lines = text.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    cells = [[word for word in line.replace("│", " ").split() if word != "|"] for line in lines]
    assert ["zero-shot", "4.0", "2.0"] in cells
    assert ["chartqa", "60.0", "·"] in cells
    assert ["oracle", "60.0", "80.0"] in cells
    joined = " ".join(" ".join(words) for words in cells)
    assert "20.00 0.00" in joined  # forgetting
    assert "60.00 70.00" in joined  # final average, without and with oracle routing


def test_the_outcome_never_wraps_paths() -> None:
    console, text = screen(Clock(), width=30)
    look = ["mlflow ui --backend-store-uri sqlite:////a/b.db", "http://127.0.0.1:5000/#/x"]
    console.print_outcome({"score matrix": "/storage/" + "x" * 60}, look)
    assert "/storage/" + "x" * 60 in text.getvalue()
    assert f"MLflow UI: {look[0]}\nComparison: {look[1]}\n" in text.getvalue()


def test_time_left_counts_updates_and_evaluations() -> None:
    left = TimeLeft(tasks=PLAN, zero_shot_left=True)
    assert (left.updates_left(), left.answers_left(), left.seconds()) == (200, 200 + 100 + 200, None)
    left.add(row(0, [1.0, 1.0], evaluate_s=20.0), 20.0)  # 200 answers in 20 s: 0.1 s each
    assert left.answers_left() == 300
    left.add(started(0), 20.0)
    for update in range(1, 12):
        left.add(step(0, update), 20.0 + 0.5 * update)
    assert left.updates_left() == 189
    assert left.seconds() == pytest.approx(189 * 0.5 + 300 * 0.1)
    left.add(step(0, 100), 75.0)
    left.add(row(1, [1.0, None], evaluate_s=10.0), 85.0)
    assert (left.updates_left(), left.answers_left()) == (100, 200)
    left.add(row(2, [1.0, 1.0], evaluate_s=20.0), 185.0)
    assert left.seconds() == 0.0


def test_time_left_follows_a_resumed_task_and_full_rows() -> None:
    left = TimeLeft(tasks=PLAN)
    left.add(row(1, [1.0, 1.0]), 0.0)  # unseen tasks are scored too
    assert left.answers_left() == 200
    resumed = started(1)
    left.add(TaskStarted(**{**vars(resumed), "resumed_at": 60, "num_updates": 120}), 5.0)
    assert left.updates_left() == 60


def test_time_left_of_what_happens_at_once_is_that_of_the_longer() -> None:
    left = TimeLeft(tasks=PLAN, zero_shot_left=True, beside=True)
    left.add(started(0), 0.0)
    for update in range(1, 12):
        left.add(step(0, update), 0.5 * update)
    left.add(row(0, [1.0, 1.0], evaluate_s=20.0), 6.0)  # 200 answers in 20 s: 0.1 s each
    assert left.seconds() == pytest.approx(max(189 * 0.5, 300 * 0.1))
    left.add(started(1), 60.0)
    left.add(step(1, 40), 80.0)
    left.add(row(1, [1.0, None], evaluate_s=10.0), 81.0)  # while task 2 is learned: its updates stay counted
    assert (left.updates_left(), left.answers_left()) == (60, 200)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("scored_on", "columns"),
    [
        ("test", "train rows  validation rows  test rows  updates"),
        ("validation", "train rows  test rows, not scored  validation rows, scored  updates"),
    ],
)
def test_a_plan_shows_the_validation_part_and_which_rows_are_scored(scored_on: str, columns: str) -> None:
    console, text = screen(Clock())
    task = PlannedTask(name="chartqa", train_rows=320, test_rows=100, num_updates=60, unscored_rows=80)
    console.print_plan([task], scored_on=scored_on)
    header, row = text.getvalue().splitlines()[-2:]
    assert header.split()[1:] == columns.split()
    assert row.split() == ["1.", "chartqa", "320", "80", "100", "60"]


TASKS = ["chartqa", "docvqa", "iconqa"]


def test_all_few_updates_are_one_warning() -> None:
    """As the quick preset has them; on a terminal the lines break at words."""
    console, text = screen(Clock(), width=60, terminal=True)
    tasks = [PlannedTask(name=name, train_rows=32, test_rows=16, num_updates=8) for name in TASKS]
    console.print_plan(tasks)
    for index in range(2):
        console.handle(started(index, num_updates=8))
    said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).split())
    assert said.count("Warning") == 2, "once for the plan, once for a task that the plan did not name"
    assert "Warning: 8 updates a task; under 50 a task is hardly learned. Take more rows or epochs, or a" in said
    mixed, text = screen(Clock(), width=200)
    mixed.print_plan([*PLAN, *(replace(task, num_updates=4 + at) for at, task in enumerate(tasks[1:]))])
    assert "Warning: few updates (docvqa 4, iconqa 5); under 50 a task" in text.getvalue()


def test_a_terminal_wraps_at_words_and_a_log_does_not() -> None:
    words = [f"word{number}" * 2 for number in range(40)]
    for terminal in (True, False):
        console, text = screen(Clock(), width=80, terminal=terminal)
        console.handle(Note(text=" ".join(words)))
        console.print_outcome({"predictions": "/" + "x" * 100})
        lines = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).splitlines()
        assert " ".join(lines[:-1]).split() == words, "no word is cut"
        assert (max(map(len, lines[:-1])) <= 80) == terminal
        assert lines[-1] == "predictions: /" + "x" * 100, "a path stays whole"


def test_the_parts_of_forgetting_stand_under_it() -> None:
    console, text = screen(Clock())
    tasks = ["chartqa", "docvqa"]
    matrix = ScoreMatrix(tasks, [[4.0, 2.0], [60.0, None], [40.0, 80.0]])
    console.print_matrix(
        matrix, {"oracle": ScoreMatrix(tasks, [[60.0, None], [60.0, 80.0]])}, {"chartqa": 12.0, "docvqa": 8.0}
    )
    lines = [line.strip() for line in text.getvalue().splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("Forgetting (against the diagonal)"))
    assert lines[at + 1].split() == ["of", "it", "by", "routing", "error", "20.00"]
    assert lines[at + 2].split() == ["of", "it", "by", "weight", "drift", "0.00"]
    assert lines[-1].startswith("Zero-shot average")
    at = next(number for number, line in enumerate(lines) if line.startswith("Final average"))
    assert lines[at + 1].split() == ["majority", "answer", "10.00"]
    assert any(re.split(r"[│ ]+", line.strip("│ ")) == ["majority", "answer", "12.0", "8.0"] for line in lines)


@pytest.mark.parametrize(
    ("rows", "majority", "said"),
    [
        (
            [[40.0, None, None], [40.0, 83.4, None], [40.0, 83.4, 9.0]],
            {"chartqa": 12.0, "docvqa": 8.0, "iconqa": 10.0},
            "Kept all it learned; best docvqa (83.4); 2 of 3 tasks above the majority answer (not iconqa).",
        ),
        (
            [[40.0, None, None], [30.0, 80.0, None], [36.0, 57.5, 20.0]],
            {},
            "Lost 13.2 points of the earlier tasks on average, most on docvqa (80.0 to 57.5); best docvqa (57.5).",
        ),
        (
            [[0.0, None, None], [0.0, 3.1, None], [0.0, 3.1, 6.2]],
            {"chartqa": 18.8, "docvqa": 12.5, "iconqa": 25.0},
            "Below the majority answer on average (3.1 against 18.8); nothing was learned that could be forgotten; "
            "0 of 3 tasks above the majority answer.",
        ),
        (
            [[40.0, None, None], [40.0, 0.0, None], [40.0, 0.0, 0.0]],
            {"chartqa": 20.0, "docvqa": 30.0, "iconqa": 30.0},
            "Below the majority answer on average (13.3 against 26.7); nothing was forgotten; 1 of 3 tasks above the "
            "majority answer (not docvqa and iconqa).",
        ),
        (
            [[40.0, None, None], [50.0, 50.0, None], [50.0, 50.0, 50.0]],
            {"chartqa": 1.0, "docvqa": 1.0, "iconqa": 1.0},
            "Kept all it learned; best chartqa, docvqa and iconqa (50.0 each); 3 of 3 tasks above the majority answer.",
        ),
        (
            [[None, None, None], [None, None, None], [50.0, 40.0, 30.0]],
            {"chartqa": 1.0, "docvqa": 1.0, "iconqa": 1.0},
            "Best chartqa (50.0); 3 of 3 tasks above the majority answer.",
        ),
        (
            [[50.0, None, None], [50.0, 60.0, None], [55.0, 55.0, 50.0]],
            {},
            "Gained as much on earlier tasks as it lost, most on docvqa (60.0 to 55.0); best chartqa and docvqa "
            "(55.0 each).",
        ),
    ],
)
def test_a_stream_in_one_sentence(rows: list[list[float | None]], majority: dict[str, float], said: str) -> None:
    matrix = ScoreMatrix(TASKS, rows, zero_shot=False)
    assert headline(matrix, majority) == said
    console, text = screen(Clock(), width=400)
    console.print_summary(matrix, majority)
    assert text.getvalue() == f"In short: {said}\n"
