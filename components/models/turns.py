"""A row's turns as templates take them: checked, with a part for each picture."""

from __future__ import annotations

from collections.abc import Sequence

from components.core.errors import DataError
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.models.templates import Said, Shown


def check_turns(row: Row, turns: Sequence[Turn]) -> None:
    """Raise `DataError` for turns that do not alternate or are empty."""
    if not turns:
        raise DataError(f"row {row.sample_id} has no question.")
    for index, turn in enumerate(turns):
        speaker = ("human", "gpt")[index % 2]
        if turn.speaker != speaker:
            raise DataError(
                f"row {row.sample_id}: turn {index + 1} is by {turn.speaker!r}; turns alternate human, gpt, human, gpt."
            )
        if not turn.text.strip():
            raise DataError(f"row {row.sample_id}: turn {index + 1} is empty; remove the row or fill it.")


def without_last_answer(row: Row) -> tuple[Turn, ...]:
    """The conversation as a prompt to be answered."""
    return row.turns[:-1] if row.turns and row.turns[-1].speaker == "gpt" else row.turns


def training_turns(row: Row) -> tuple[Turn, ...]:
    """The conversation as it is learned; raises `DataError`."""
    check_turns(row, row.turns)
    if row.turns[-1].speaker != "gpt":
        raise DataError(f"row {row.sample_id}: the last turn is a question; a training row ends with an answer.")
    if not any(turn.weight for turn in row.turns if turn.speaker == "gpt"):
        raise DataError(
            f"row {row.sample_id}: all its answers have weight 0, so there is nothing to learn from it; leave the "
            "row out or give an answer a weight above 0."
        )
    return row.turns


def prompt_turns(row: Row) -> tuple[Turn, ...]:
    """The conversation as it is asked; raises `DataError`."""
    turns = without_last_answer(row)
    check_turns(row, turns)
    return turns


def in_parts(row: Row, turns: Sequence[Turn], pictures: Sequence[str]) -> list[Said]:
    """Stripped turns as templates take them; `pictures` are the texts that stand for them, one for each placeholder.

    A placeholder in a question is a picture, in an answer it is text.
    """
    found = sum(turn.text.count(IMAGE_TOKEN) for turn in turns if turn.speaker == "human")
    if found != len(pictures):
        raise DataError(
            f"row {row.sample_id}: its questions have {found} picture placeholders for {len(pictures)} pictures; write "
            f"{IMAGE_TOKEN} once for each picture of the row, and nowhere else."
        )
    shown, parted = iter(pictures), list[Said]()
    for turn in turns:
        parts: list[str | Shown] = []
        whole = turn.text.strip()
        for index, text in enumerate(whole.split(IMAGE_TOKEN) if turn.speaker == "human" else [whole]):
            if index:
                parts.append(Shown(next(shown)))
            if text:
                parts.append(text)
        parted.append(Said(turn.speaker, tuple(parts)))
    return parted
