"""What a person sees of a running stream: live bars in a terminal, plain lines elsewhere, tables at both ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import rich.console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from components.console.eta import PlannedTask, TimeLeft, duration_text
from components.console.still import Still
from components.console.terminal import Terminal
from components.core.events import (
    EvaluationProgress,
    Event,
    Note,
    PhaseBegan,
    RowScored,
    StepDone,
    SuitesScored,
    TaskStarted,
    UpdateSkipped,
)
from components.core.visible import visible
from components.evaluation import general
from components.evaluation.figure_names import LABELS, NO_BOUNDARIES
from components.evaluation.forgetting import SPLIT_LABELS, split_if_known
from components.evaluation.general import GeneralScores
from components.evaluation.headline import headline
from components.evaluation.ledger import Difference
from components.evaluation.majority import majority_average
from components.evaluation.matrix import ScoreMatrix, when

FEW_UPDATES = 50  # below it a task is hardly learned, and forgetting says nothing
QUIET_LINE_EVERY_S = 10.0


class Console:
    """Follows a stream of events. Give the plan first (`print_plan`): the time left needs it.

    `out` is where to print (for tests); by default standard output. `clock` gives seconds.
    """

    def __init__(self, out: rich.console.Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out or Terminal(highlight=False)
        self._clock = clock
        self._left: TimeLeft | None = None
        self._num_tasks = 0
        self._last_line_s = float("-inf")
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._warned: set[str] = set()
        self._still = Still(lambda line: self._say(Text(line)), clock=clock)

    # ---- before

    def print_plan(
        self,
        tasks: Sequence[PlannedTask],
        facts: Mapping[str, str] | None = None,
        *,
        zero_shot: bool = False,
        scored_on: str = "test",
        beside: bool = False,
    ) -> None:
        """The tasks in order with their rows and updates, `facts` above them, and a warning for few updates.

        `beside`: rows are scored while tasks are learned.
        """
        self._left = TimeLeft(tasks=tuple(tasks), zero_shot_left=zero_shot, beside=beside)
        self._num_tasks = len(tasks)
        for name, value in (facts or {}).items():
            self._say(Text.assemble((f"{name}: ", "bold"), value), is_path=value.startswith(("/", "~")))
        in_segments = self._left.in_segments
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("segment" if in_segments else "task", overflow="fold")
        on_test = scored_on == "test"
        unscored = (
            ("validation rows" if on_test else "test rows, not scored",) if any(t.unscored_rows for t in tasks) else ()
        )
        for column in ("train rows", *unscored, "test rows" if on_test else "validation rows, scored", "updates"):
            table.add_column(column, justify="right")
        if in_segments:
            table.add_column("train rows of", overflow="fold")
        for number, task in enumerate(tasks, start=1):
            updates = Text(str(task.num_updates), style="yellow" if 0 < task.num_updates < FEW_UPDATES else "")
            rows = (task.train_rows, *((task.unscored_rows,) if unscored else ()), task.test_rows)
            holds = (Text(visible(task.holds)),) if in_segments else ()
            table.add_row(Text(f"{number}. {visible(task.name)}"), *map(str, rows), updates, *holds)
        self._out.print(table)
        self._warn_few_updates({task.name: task.num_updates for task in tasks})

    def print_memory(self, lines: Sequence[tuple[str, str, str]], *, each: str) -> None:
        """A small table of planned memory in GiB; `each` says of what: a GPU or a worker."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column(f"GiB of each {each}")
        for column in ("learning", "answering"):
            table.add_column(column, justify="right")
        for line in lines:
            table.add_row(*line)
        self._out.print(table)

    # ---- while it runs

    def handle(self, event: Event) -> None:
        """Show one event."""
        now_s = self._clock()
        if self._left is not None and isinstance(event, TaskStarted | StepDone | RowScored):
            self._left.add(event, now_s)
        match event:
            case TaskStarted():
                self._start_task(event)
            case StepDone():
                self._show("learning", self._step_line(event), event.update, event.num_updates, now_s)
            case UpdateSkipped():
                which = f"update {event.update} of task {event.task}"
                counted = f"{event.skipped} of at most {event.allowed}"
                self.handle(Note(text=f"{which} was skipped, because {event.cause} ({counted})", warning=True))
            case EvaluationProgress():
                line = f"scoring {when(event.after)}: {event.task} {event.done}/{event.total}{self._left_text()}"
                self._show("scoring", line, event.done, event.total, now_s)
            case RowScored():
                self._print_row(event)
            case SuitesScored():
                self._print_suites(event)
            case PhaseBegan():
                self._still.doing(event.phase)
                if not self._out.is_terminal:
                    self._still.start()
            case Note():
                style = "bold yellow" if event.warning else ""
                self._say(Text(("Warning: " if event.warning else "") + event.text, style=style))

    def close(self) -> None:
        """Remove the live bars; printing goes on as usual. Safe to call twice."""
        self._still.close()
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._bars = None, {}

    def _start_task(self, event: TaskStarted) -> None:
        share = event.trainable_parameters / max(event.total_parameters, 1)
        resumed = f", going on after update {event.resumed_at}" if event.resumed_at else ""
        facts = (
            f": {event.num_samples} rows, {event.num_updates} updates, {event.trainable_parameters:,} trainable "
            f"parameters ({share:.2%}), ready in {event.start_s:.1f} s{resumed}"
        )
        each = "Segment" if self._left is not None and self._left.in_segments else "Task"
        name = f"{each} {self._number(event.index)} {event.task}"
        self._say(Text.assemble((name, "bold"), facts))
        self._still.doing(f"{name}, its first update")
        self._warn_few_updates({event.task: event.num_updates})
        self._last_line_s = self._clock()

    def _say(self, text: Text, *, is_path: bool = False) -> None:
        """A line; a terminal wraps it at words. Never wrapped: paths, which get copied, and lines of a log."""
        self._still.printed()
        self._out.print(text, soft_wrap=is_path or not self._out.is_terminal)

    def _warn_few_updates(self, updates: Mapping[str, int]) -> None:
        """One warning for all tasks that were not warned of; 0 updates are of a method that trains nothing. None for
        segments: many of them learn one task."""
        if self._left is not None and self._left.in_segments:
            return
        few = {task: count for task, count in updates.items() if 0 < count < FEW_UPDATES and task not in self._warned}
        if not few:
            return
        self._warned |= set(few)
        counts = set(few.values())
        if len(few) == 1:
            found = "".join(f"{task} gets only {count} updates; under {FEW_UPDATES}" for task, count in few.items())
        elif len(counts) == 1 and len(few) == len(updates):
            found = f"{counts.pop()} updates a task; under {FEW_UPDATES}"
        else:
            listed = ", ".join(f"{task} {count}" for task, count in few.items())
            found = f"few updates ({listed}); under {FEW_UPDATES}"
        advice = "a task is hardly learned. Take more rows or epochs, or a smaller global batch size."
        self.handle(Note(text=f"{found} {advice}", warning=True))

    def _step_line(self, event: StepDone) -> str:
        return (
            f"task {self._number(event.index)} {event.task}  update {event.update}/{event.num_updates}  "
            f"loss {event.loss:.4f}  {event.samples_per_s:.1f} samples/s{self._left_text()}"
        )

    def _number(self, index: int) -> str:
        return f"{index + 1}/{self._num_tasks}" if self._num_tasks else str(index + 1)

    def _left_text(self) -> str:
        seconds = None if self._left is None else self._left.seconds()
        if self._left is None or seconds is None or round(seconds) == 0:
            return ""
        return f"  {'' if self._left.knows_evaluation else 'at least '}{duration_text(seconds)} left"

    def _show(self, what: str, line: str, done: int, total: int, now_s: float) -> None:
        """The line in the live bar on a terminal, elsewhere printed now and then."""
        self._still.doing(line)
        if self._out.is_terminal:
            self._move_bar(what, line, done, total)
        elif now_s - self._last_line_s >= QUIET_LINE_EVERY_S:
            self._last_line_s = now_s
            self._say(Text(line))

    def _move_bar(self, what: str, line: str, done: int, total: int) -> None:
        """Learning and scoring share a bar, but where both happen at once."""
        if self._progress is None:
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=self._out, transient=True, refresh_per_second=4)
            self._progress.start()
        bar = what if self._left is not None and self._left.beside else ""
        if bar not in self._bars:
            self._bars[bar] = self._progress.add_task("", total=total)
        self._progress.update(self._bars[bar], description=escape(visible(line)), completed=done, total=total)

    def _remove_bar(self, what: str) -> None:
        """Remove the bar of what has come to its end."""
        if self._progress is not None and what in self._bars:
            self._progress.remove_task(self._bars.pop(what))

    def _print_row(self, event: RowScored) -> None:
        """One finished row of the matrix as a line."""
        self._remove_bar("scoring")
        scores = "  ".join(f"{task} {score:.1f}" for task, score in event.scores.items() if score is not None)
        trained = f"trained {duration_text(event.train_s)}, " if event.tasks_learned else ""
        kept = f", {event.kept_replies} of {event.replies} replies kept" if event.kept_replies else ""
        memory = f"peak memory {event.peak_memory_bytes / 2**30:.1f} GiB"
        facts = f"{trained}scored {duration_text(event.evaluate_s)}{kept}, {memory}"
        name = f"After {event.after}: " if event.tasks_learned else "Zero-shot: "
        line = Text.assemble((name, "bold"), f"{scores}  ({facts}{self._left_text().replace('  ', ', ')})")
        self._say(line)
        self._still.doing(f"what comes after row {event.after}")
        self._last_line_s = self._clock()

    def _print_suites(self, event: SuitesScored) -> None:
        """What the general suites scored, as a line."""
        scores = "  ".join(f"{suite} {found['score']:.1f}" for suite, found in event.figures.items())
        name = f"General ability after {event.after}: " if event.tasks_learned else "General ability before: "
        line = Text.assemble((name, "bold"), f"{scores}  (scored {duration_text(event.evaluate_s)})")
        self._say(line)
        self._last_line_s = self._clock()

    # ---- at the end

    def print_matrix(
        self,
        matrix: ScoreMatrix,
        variants: Mapping[str, ScoreMatrix] | None = None,
        majority: Mapping[str, float] | None = None,
    ) -> None:
        """The score matrix and its figures; of each variant the last row and its figures.

        `majority` is what the majority answer scores on each task, where it is known.
        """
        self.close()
        self._out.print(_matrix_table(matrix, variants or {}, majority or {}))
        self._out.print(_figures_table(matrix, variants or {}, majority or {}))
        if matrix.points is not None:
            self._say(Text(NO_BOUNDARIES))

    def print_summary(self, matrix: ScoreMatrix, majority: Mapping[str, float] | None = None) -> None:
        """The stream in one sentence."""
        self.close()
        self._say(Text.assemble(("In short: ", "bold"), headline(matrix, majority)))

    def print_general(self, scores: GeneralScores, final_average: float | None = None) -> None:
        """How much of the general suites is retained, and the means over them; nothing without suites."""
        self.close()
        kept = scores.kept()
        if not kept:
            return
        table = Table(title="General ability", title_style="bold", header_style="bold")
        table.add_column("suite", overflow="fold")
        for column in ("before", "after", "difference", "retained"):
            table.add_column(column, justify="right")
        for suite, found in kept.items():
            share = "·" if found.retained is None else f"{found.retained:.2f}"
            table.add_row(Text(suite), f"{found.before:.1f}", f"{found.after:.1f}", f"{found.difference:+.1f}", share)
        self._out.print(table)
        for name, value in scores.summary(final_average).items():
            self._say(Text.assemble((f"{general.LABELS[name]}: ", "bold"), f"{value:.2f}"))

    def print_ledger(self, differences: Sequence[Difference]) -> None:
        """The run beside published results of its method: ours minus theirs, and the protocol differences."""
        self.close()
        for difference in differences:
            row = difference.row
            figures = {LABELS[name]: value for name, value in difference.figures.items()} | dict(difference.final)
            text = ", ".join(f"{name} {value:+.1f}" for name, value in figures.items()) or "no figure in common"
            self._say(Text.assemble((f"{row.label} in {row.source}: ", "bold"), text))
            for note in (*difference.protocol, *row.flaws(), f"trust: {row.trust}"):
                self._say(Text(f"  {note}", style="dim"))

    def print_outcome(self, paths: Mapping[str, str], look: Sequence[str] = ()) -> None:
        """Where everything was written, and how to look at it. Paths are never wrapped: they get copied."""
        self.close()
        for name, path in paths.items():
            self._say(Text.assemble((f"{name}: ", "bold"), path), is_path=True)
        for text, title in zip(look, ("MLflow UI", "Comparison"), strict=False):
            self._say(Text.assemble((f"{title}: ", "bold"), (text, "cyan")), is_path=True)


def _matrix_table(matrix: ScoreMatrix, variants: Mapping[str, ScoreMatrix], majority: Mapping[str, float]) -> Table:
    table = Table(title="Score matrix", title_style="bold", header_style="bold", show_lines=False)
    table.add_column("after", overflow="fold", min_width=6)
    for task in matrix.tasks:
        table.add_column(Text(visible(task)), justify="right", overflow="fold", min_width=5)
    for number, (after, row) in enumerate(zip(matrix.after, matrix.rows, strict=True)):
        learned = number - matrix.has_zero_shot if matrix.points is None else None
        cells = [_cell(score, bold=column == learned) for column, score in enumerate(row)]
        table.add_row(Text(visible(after)), *cells, end_section=after == "zero-shot")
    for name, other in variants.items():
        if other.num_learned:
            table.add_section()
            table.add_row(Text(name), *[_cell(score, bold=False) for score in other.rows[-1]])
    if majority:
        table.add_section()
        table.add_row("majority answer", *[_cell(majority.get(task), bold=False) for task in matrix.tasks])
    return table


def _figures_table(matrix: ScoreMatrix, variants: Mapping[str, ScoreMatrix], majority: Mapping[str, float]) -> Table:
    """The figures; the majority answer under the average it is held against, forgetting's parts under forgetting."""
    table = Table(box=None, show_header=bool(variants), header_style="bold", pad_edge=False)
    table.add_column("")
    for name in ("score", *variants):
        table.add_column(name, justify="right")
    summaries = [matrix.summary(), *(variant.summary() for variant in variants.values())]
    constant = majority_average(majority, matrix.counted)
    for name in summaries[0]:
        table.add_row(LABELS[name], *(f"{figures[name]:.2f}" if name in figures else "" for figures in summaries))
        if name == "final_average" and constant is not None:
            table.add_row("  majority answer", f"{constant:.2f}")
        if name == "forgetting_diagonal":
            for part, value in split_if_known(matrix, variants).items():
                table.add_row(SPLIT_LABELS[part], f"{value + 0.0:.2f}")
    return table


def _cell(score: float | None, *, bold: bool) -> Text:
    return Text("·", style="dim") if score is None else Text(f"{score:.1f}", style="bold" if bold else "")
