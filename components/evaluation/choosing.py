"""Rows with options, and which of these is the reply: the likeliest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from components.data.rows import Row, Split, plain_instruction
from components.evaluation.replies import ChosenBy, Replies
from components.metrics.closed import options_of

if TYPE_CHECKING:
    from components.models.encoding import Encoder


class Option(NamedTuple):
    """A text that may be the reply, and its tokens as training would teach them, without an end token."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How rows with options are answered."""

    by: ChosenBy
    options: Mapping[str, Sequence[Option]]  # by sample id; all other rows get a generated reply

    @classmethod
    def of(cls, by: ChosenBy, encoder: Encoder, rows: Iterable[Row]) -> Choosing:
        """For these rows, which may come without their pictures."""
        found = {row.sample_id: (row, texts) for row in rows if (texts := row_options(row))}
        return cls(
            by=by,
            options={
                name: [Option(text, tuple(encoder.reply_ids(row, text))) for text in texts]
                for name, (row, texts) in found.items()
            },
        )


class Choosings:
    """`Choosing` of tasks and suites, each made once: every row of the matrix asks for it again."""

    def __init__(self, replies: Replies, encoder: Encoder) -> None:
        self._replies: Replies = replies
        self._encoder, self._made = encoder, dict[tuple[str, int], Choosing]()

    def of(self, rows: Split, num_rows: int) -> Choosing | None:
        """That of the first rows of a split; None where all replies are generated."""
        if self._replies == "generated":
            return None
        if (asked := (rows.digest, num_rows)) not in self._made:
            found = rows.rows(with_image=False, limit=num_rows)
            self._made[asked] = Choosing.of(self._replies, self._encoder, found)
        return self._made[asked]


def question_of(row: Row) -> str:
    """What the scored turn answers: the last question of the row, without the picture's mark."""
    return plain_instruction(next((turn.text for turn in reversed(row.turns) if turn.speaker == "human"), ""))


def row_options(row: Row) -> tuple[str, ...]:
    """The texts of which one is the row's answer; empty for an open question."""
    return options_of(row.metric, question_of(row), row.answers)
