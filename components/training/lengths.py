"""How many tokens rows take, found before anything is trained: rows too long for the backbone, rows with more pictures
than it takes, answers that no reply can give.

Only texts are tokenised, no picture is decoded, and what was measured once is kept in the cache: nothing here imports a
model library when all splits are known.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from components.core.errors import ConfigError, DataError
from components.core.files import write_text
from components.core.fingerprint import code_fingerprint
from components.core.machine import cache_dir
from components.core.options import T, from_plain
from components.core.reading import read_json
from components.data.rows import Row, Split
from components.data.streams import StreamConfig, rows_left
from components.data.suite import Suite
from components.data.tasks import Task, TaskStream
from components.metrics import score
from components.models.config import BackboneConfig
from components.models.source import model_source
from components.training.named_rows import SHOWN, named_rows, shown_rows, split_name
from components.training.streaming import encoder_for

if TYPE_CHECKING:
    from components.models.encoding import Encoder

COUNTED_ROWS = 256  # tokenised at once: one call for each row would cost as much as the tokens


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


@dataclass(frozen=True, kw_only=True)
class SplitLengths:
    """Lengths of one split's rows, in order."""

    tokens: list[int]
    """Tokens of the whole conversation for training rows, of the prompt for rows to be answered."""
    replies: list[int]
    """Test splits: tokens of the shortest accepted answer. Training splits: one number, the supervised tokens of the
    longest row."""
    unreachable: list[int]
    """Test splits only: rows, from 0, whose every accepted answer scores 0 even when given word for word."""
    pictures: list[int]
    """How many each row has."""
    refused: list[tuple[int, str, str]]
    """Rows, from 0, with more than the backbone takes, as `Excess` says it; they count 0 tokens."""


def fit_to_backbone(
    backbone: BackboneConfig,
    streams: StreamConfig,
    stream: TaskStream,
    suites: Sequence[Suite],
    *,
    limit: int | None,
) -> tuple[TaskStream, tuple[Suite, ...], Fitted]:
    """The stream and the suites as this backbone learns and answers them, judged by the first `limit` test rows.

    Raises `DataError` that names every row that is too long, unless `backbone.too_long` says to cut or skip them, and
    every row with more pictures or questions than the backbone takes.
    """
    key = encoder_key(backbone)
    parts = [(task.train, False, None) for task in stream.tasks] + [(task.test, True, limit) for task in stream.tasks]
    parts += [(suite.test, True, None) for suite in suites]
    lengths = {(split.digest, asked): _measured(backbone, key, split, answering=asked) for split, asked, _ in parts}
    _require_taken(backbone, [(split, lengths[split.digest, asked], first) for split, asked, first in parts])
    long: list[_Long] = []
    for split, asked, first in parts:
        # Where rows are skipped, those behind the first `limit` move up.
        tokens = lengths[split.digest, asked].tokens[: None if backbone.too_long == "skip" else first]
        rows = {row: size for row, size in enumerate(tokens) if size > backbone.max_length}
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
    template, why = _template(backbone, key)
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
    lengths = _measured(backbone, encoder_key(backbone), split, answering=split.split != "train")
    sizes, refused = lengths.tokens, lengths.refused
    longer = sum(size > backbone.max_length for size in sizes)
    what = f"{longer:,} of {len(sizes):,} rows of {split_name(split)} take more than {backbone.max_length:,} tokens"
    limits = " and ".join(dict.fromkeys(taken for _, _, taken in refused))
    more = f"; it takes {limits}, and {len(refused):,} have more" if refused else ""
    return f"With {backbone.name}, {what}; the longest takes {max(sizes, default=0):,}{more}."


# ---- measuring ---------------------------------------------------------------------------------------------------


def _measured(backbone: BackboneConfig, key: str, split: Split, *, answering: bool) -> SplitLengths:
    kind = "asked" if answering else "taught"
    path = cache_dir() / "lengths" / f"{split.digest[:32]}-{kind}-{key}.json"
    found = _read(path, SplitLengths)
    if found is not None:
        return found
    lengths = measure_split(encoder_for(backbone), split, answering=answering)
    write_text(path, json.dumps(asdict(lengths)))
    return lengths


def measure_split(encoder: Encoder, split: Split, *, answering: bool) -> SplitLengths:
    """Tokenise every row of `split`; raises `DataError` for a row that cannot be encoded at all."""
    tokens, replies, unreachable = list[int](), list[int](), list[int]()
    pictures, refused = list[int](), list[tuple[int, str, str]]()
    longest: tuple[int, Row] | None = None
    for number, (row, size) in enumerate(_sized(encoder, split, answering=answering)):
        pictures.append(len(row.pictures))
        tokens.append(size)
        if not size:
            excess = encoder.excess(row)
            assert excess is not None, f"row {row.sample_id} has no token"
            refused.append((number, excess.found, excess.taken))
            replies += [0] if answering else []
            continue
        if not answering:
            if longest is None or size > longest[0]:
                longest = size, row
            continue
        if row.metric == "constraints":  # its answers are conditions, not texts to be replied
            replies.append(0)
            continue
        given = [encoder.reply_ids(row, answer) for answer in dict.fromkeys(row.answers)]
        replies.append(min(len(ids) for ids in given))
        if not any(score(row.metric, encoder.decode(ids), row.answers) for ids in given):
            unreachable.append(number)
    if longest is not None:
        replies = [encoder.num_labels(longest[1])]
    return SplitLengths(tokens=tokens, replies=replies, unreachable=unreachable, pictures=pictures, refused=refused)


def _sized(encoder: Encoder, split: Split, *, answering: bool) -> Iterator[tuple[Row, int]]:
    """Each row with its tokens; 0 for a row with more than the backbone takes."""
    rows = split.rows(with_image=False)
    while some := [*islice(rows, COUNTED_ROWS)]:
        sizes = iter(encoder.nums_tokens([row for row in some if encoder.excess(row) is None], answering=answering))
        yield from ((row, next(sizes) if encoder.excess(row) is None else 0) for row in some)


def _template(backbone: BackboneConfig, key: str) -> tuple[str, str]:
    path = cache_dir() / "lengths" / f"template-{key}.json"
    found = _read(path, dict[Literal["name", "why"], str])
    if found is None or len(found) != 2:
        name, why = encoder_for(backbone).template
        found = {"name": name, "why": why}
        write_text(path, json.dumps(found))
    return found["name"], found["why"]


def _read(path: Path, kind: type[T]) -> T | None:
    """What was counted before; None where it is missing or damaged, and then it is counted again."""
    try:
        return from_plain(kind, read_json(path, DataError, ""), path.name)
    except (DataError, ConfigError):
        return None


def encoder_key(backbone: BackboneConfig) -> str:
    """Identity of how texts become tokens: code, libraries, template, and the files of the tokenizer."""
    digest = hashlib.sha256(code_fingerprint().encode())
    for package in ("transformers", "tokenizers"):
        digest.update(importlib.metadata.version(package).encode())
    digest.update(f"{backbone.name} {backbone.template} {backbone.vision_layer}".encode())
    for path in model_source(backbone).tokenizer_files():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
