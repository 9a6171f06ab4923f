"""A log has a line a minute, and a terminal no more than its bars."""

from __future__ import annotations

from components.console.still import EVERY_S, Still


def test_what_goes_on_is_repeated_when_nothing_else_was_said() -> None:
    now_s, said = [100.0], list[str]()
    still = Still(said.append, clock=lambda: now_s[0])
    now_s[0] += 10 * EVERY_S
    still.look()
    assert said == []  # nothing goes on yet
    still.doing("starting the workers")
    still.printed()
    for _ in range(3 * 60):  # seconds, with a look each
        now_s[0] += 1
        still.look()
    assert said == [f"still at it, for {text}: starting the workers" for text in ("50 s", "2 min", "2 min")]
    now_s[0] += 40
    still.printed()  # another line came: the next one is due a while after it
    now_s[0] += 20
    still.look()
    assert len(said) == 3


def test_a_line_is_at_most_a_minute_away() -> None:
    """The thread looks once a second, and may come late."""
    assert EVERY_S <= 55
