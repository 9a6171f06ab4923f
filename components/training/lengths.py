"""How many tokens rows take, found before anything is trained: rows too long for the backbone, rows with more pictures
than it takes, answers that no reply can give.

Only texts are tokenised, no picture is decoded, and what was measured once is kept in the cache: nothing here imports a
model library when all splits are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from components.core.errors import DataError
from components.data.rows import Split
from components.data.segments import Segment
from components.data.stream_config import StreamConfig
from components.data.streams import rows_left
from components.data.suite import Suite
from components.data.tasks import Task, TaskStream
from components.models.config import BackboneConfig
from components.training.measuring import SplitLengths, encoder_key, measured, template_of
from components.training.named_rows import SHOWN, named_rows, shown_rows, split_name
from components.training.streaming import encoder_for


class RowTokens(NamedTuple):
    """Tokens of one split's rows that take part, after cuts."""

    mean: float
    longest: int
    replies: int
    """Of the longest accepted answer, with its end; of training rows: all answers of the longest row."""
    pictures: tuple[float, int] = (1.0, 1)
    """Mean of the rows, and the most that one has."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What was found and done; shown with the plan and kept in the run's record."""

    template: str = ""
    """The conversation template in use, and `why`."""
    why: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of rows left out because they are too long, by split."""
    cut: dict[str, int] = field(default_factory=dict)
    """Number of rows cut to the limit, by split."""
    warnings: tuple[str, ...] = ()
    tokens: dict[str, RowTokens] = field(default_factory=dict)
    """By split, as in `left_out`."""
    pictures: dict[str, dict[int, int]] = field(default_factory=dict)
    """By split: how many rows have each number of pictures."""


def fit_to_backbone(
    backbone: BackboneConfig,
    streams: StreamConfig,
    stream: TaskStream,
    suites: Sequence[Suite],
    *,
    limit: int | None,
    reached: Mapping[str, Sequence[int]] | None = None,
) -> tuple[TaskStream, tuple[Suite, ...], Fitted]:
    """The stream and the suites as this backbone learns and answers them, judged by the first `limit` test rows.

    `reached`: by digest, rows of training splits that the others are not to be counted of, see `rows_to_count`.

    Raises `DataError` that names every row that is too long, unless `backbone.too_long` says to cut or skip them, and
    every row with more pictures or questions than the backbone takes.
    """
    key = encoder_key(backbone)
    parts = [(task.train, False, None) for task in stream.tasks] + [(task.test, True, limit) for task in stream.tasks]
    parts += [(suite.test, True, None) for suite in suites]
    reached = reached or {}
    lengths = {
        (split.digest, asked): measured(
            backbone, key, split, answering=asked, rows=None if asked else reached.get(split.digest)
        )
        for split, asked, _ in parts
    }
    _require_taken(backbone, [(split, lengths[split.digest, asked], first) for split, asked, first in parts])
    long: list[_Long] = []
    for split, asked, first in parts:
        # Where rows are skipped, those behind the first `limit` move up.
        tokens = lengths[split.digest, asked].tokens[: None if backbone.too_long == "skip" else first]
        numbers = range(len(tokens)) if asked else reached.get(split.digest, range(len(tokens)))
        rows = {row: size for row, size in zip(numbers, tokens, strict=True) if size > backbone.max_length}
        if rows:
            long.append(_Long(split=split, asked=asked, rows=rows))
    counts = {each.name: len(each.rows) for each in long}
    tokens = {
        split_name(split): _tokens(backbone, lengths[split.digest, asked], first) for split, asked, first in parts
    }
    if long and backbone.too_long == "error":
        raise DataError(_refusal(backbone, long))
    if long and backbone.too_long == "cut":
        _check_cuts(backbone, long)
    skipped = {each.split.digest: set(each.rows) for each in long if each.asked and backbone.too_long == "skip"}
    warnings = [*_reply_warnings(stream, suites, lengths, limit, skipped)]
    if long and backbone.too_long == "skip":
        shorter = {each.split.digest: rows_left(streams, each.split, frozenset(each.rows)) for each in long}
        tasks = (_with_splits(task, shorter) for task in stream.tasks)
        stream = replace(stream, tasks=tuple(tasks))
        suites = [replace(suite, test=shorter.get(suite.test.digest, suite.test)) for suite in suites]
    template, why = template_of(backbone, key)
    return (
        stream,
        tuple(suites),
        Fitted(
            template=template,
            why=why,
            left_out=counts if backbone.too_long == "skip" else {},
            cut=counts if backbone.too_long == "cut" else {},
            warnings=tuple(warnings),
            tokens=tokens,
            pictures={
                split_name(split): dict(sorted(Counter(lengths[split.digest, asked].pictures[:first]).items()))
                for split, asked, first in parts
            },
        ),
    )


def with_segments(fitted: Fitted, segments: Sequence[Segment]) -> Fitted:
    """What was found, with the tokens of segments: of each as if its tasks' rows were like all others of their task."""
    tokens = dict(fitted.tokens)
    for segment in segments:
        parts = [(count, fitted.tokens[f"{task} train"]) for task, count in segment.rows.items()]
        total = sum(count for count, _ in parts)
        tokens[split_name(segment.train)] = RowTokens(
            mean=sum(count * part.mean for count, part in parts) / total,
            longest=max(part.longest for _, part in parts),
            replies=max(part.replies for _, part in parts),
            pictures=(
                sum(count * part.pictures[0] for count, part in parts) / total,
                max(part.pictures[1] for _, part in parts),
            ),
        )
    return replace(fitted, tokens=tokens)


def _tokens(backbone: BackboneConfig, lengths: SplitLengths, first: int | None) -> RowTokens:
    limit, sizes = backbone.max_length, lengths.tokens[:first]
    kept = [min(size, limit) for size in sizes if size <= limit or backbone.too_long != "skip"] or [0]
    replies, shown = max(lengths.replies[:first], default=0), lengths.pictures[:first] or [0]
    return RowTokens(
        mean=sum(kept) / len(kept),
        longest=max(kept),
        replies=min(replies + 1, max(kept)),
        pictures=(sum(shown) / len(shown), max(shown)),
    )


def _with_splits(task: Task, others: Mapping[str, Split]) -> Task:
    """The task with its splits replaced by those that `others` has for their digests."""
    train, test = (others.get(split.digest, split) for split in (task.train, task.test))
    return replace(task, train=train, test=test)


# ---- messages ----------------------------------------------------------------------------------------------------


class _Long(NamedTuple):
    """Rows of one split that are too long."""

    split: Split
    asked: bool  # as a prompt to be answered
    rows: dict[int, int]  # tokens by row, counted from 0

    @property
    def name(self) -> str:
        return split_name(self.split)


def _refusal(backbone: BackboneConfig, long: Sequence[_Long]) -> str:
    named = [
        line
        for each in long
        for line in named_rows(each.split, {row: f"{size} tokens" for row, size in each.rows.items()})
    ]
    text = shown_rows(named, "too-long")
    largest = max(size for each in long for size in each.rows.values())
    rows = "row takes" if len(named) == 1 else "rows take"
    return (
        f"{len(named)} {rows} more tokens than backbone.max_length = {backbone.max_length}: {text}. Raise "
        f"--backbone.max-length to {largest} if the model can take that, or set --backbone.too-long to cut or skip."
    )


def _require_taken(backbone: BackboneConfig, parts: Sequence[tuple[Split, SplitLengths, int | None]]) -> None:
    """Raise `DataError` naming the rows with more pictures or questions than the backbone takes."""
    named, limits = list[str](), dict[str, None]()
    for split, lengths, first in parts:
        rows = {row: (found, taken) for row, found, taken in lengths.refused if first is None or row < first}
        named += named_rows(split, {row: found for row, (found, _) in rows.items()})
        limits.update(dict.fromkeys(taken for _, taken in rows.values()))
    if named:
        rows = "row has" if len(named) == 1 else "rows have"
        raise DataError(
            f"backbone {backbone.name!r} takes {' and '.join(limits)}, and {len(named)} {rows} more: "
            f"{shown_rows(named, 'too-many')}. Leave them out or choose another backbone."
        )


def _check_cuts(backbone: BackboneConfig, long: Sequence[_Long]) -> None:
    """Raise `DataError` naming the rows that cannot be cut."""
    encoder, wrong = encoder_for(backbone), list[str]()
    for each in long:
        for number, row in enumerate(each.split.rows(with_image=False)):
            if number not in each.rows:
                continue
            try:
                encode = encoder.prompt_example if each.asked else encoder.training_example
                encode(row, pictures=encoder.without_tensors(row))
            except DataError as error:
                wrong.append(f"{each.name} row {number + 1}: {str(error).rstrip('.')}")
    if wrong:
        more = f" (and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
        raise DataError(f"{len(wrong)} rows cannot be cut: {'; '.join(wrong[:SHOWN])}{more}.")


def _reply_warnings(
    stream: TaskStream,
    suites: Sequence[Suite],
    measured: Mapping[tuple[str, bool], SplitLengths],
    limit: int | None,
    skipped: Mapping[str, set[int]],
) -> Iterator[str]:
    tested = [(f"task {task.name}", task.test, task.max_new_tokens, limit) for task in stream.tasks]
    tested += [(f"suite {suite.name}", suite.test, suite.max_new_tokens, None) for suite in suites]
    for name, split, room, first in tested:
        lengths = measured[split.digest, True]
        without = skipped.get(split.digest, set[int]())
        answered = [row for row in range(split.num_rows) if row not in without][:first]
        replies = [lengths.replies[row] for row in answered]
        longer = [size for size in replies if size > room]
        if longer:
            yield (
                f"{len(longer)} of {len(replies)} test answers of {name} need more than max_new_tokens = {room} (the "
                f"longest {max(longer)} tokens): replies end before them"
            )
        unreachable = sorted(set(lengths.unreachable).intersection(answered))
        if unreachable:
            rows = ", ".join(str(row + 1) for row in unreachable[:SHOWN])
            more = f" and {len(unreachable) - SHOWN} more" if len(unreachable) > SHOWN else ""
            yield (
                f"{len(unreachable)} of {len(replies)} test rows of {name} score 0 whatever is replied, even their own "
                f"answer word for word: rows {rows}{more}"
            )


def longer_rows(backbone: BackboneConfig, split: Split) -> str:
    """A sentence: how many rows of a split take more tokens than the limit, or have more pictures than is taken."""
    lengths = measured(backbone, encoder_key(backbone), split, answering=split.split != "train")
    sizes, refused = lengths.tokens, lengths.refused
    longer = sum(size > backbone.max_length for size in sizes)
    what = f"{longer:,} of {len(sizes):,} rows of {split_name(split)} take more than {backbone.max_length:,} tokens"
    limits = " and ".join(dict.fromkeys(taken for _, _, taken in refused))
    more = f"; it takes {limits}, and {len(refused):,} have more" if refused else ""
    return f"With {backbone.name}, {what}; the longest takes {max(sizes, default=0):,}{more}."
