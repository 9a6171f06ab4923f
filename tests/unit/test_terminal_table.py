"""Tables in a narrow terminal: nothing is cut, and every part says what its lines are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from components.console.tables import parts, print_table

HEADER = ["method", "final average", "[forgetting]", "seeds"]
LINES = [["`lcia`", "44.6 ± 0.1", "0.0 [-1.0, 1.0]", "0, 1, 2"], ["`moelora`", "37.2 ± 3.3", "13.2 ± 2.5", "0"]]


def printed(width: int) -> str:
    out = io.StringIO()
    print_table(HEADER, LINES, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 200])
def test_every_cell_is_there_whole(width: int) -> None:
    text = printed(width)
    assert all(cell in text for row in (HEADER, *LINES) for cell in row)
    assert max(len(line) for line in text.splitlines()) <= width


def test_parts_repeat_the_first_column() -> None:
    assert printed(200).count("`lcia`") == 1
    assert printed(44).count("`lcia`") == 2
    assert parts([10, 20, 20, 20], 50) == [[0, 1, 2], [0, 3]]
    assert parts([10, 90, 90], 50) == [[0, 1], [0, 2]]  # too wide for any part: it wraps
    assert parts([10], 50) == [[0]]


def test_a_long_first_column_wraps_where_others_need_the_room() -> None:
    name = "`lcia` (ema_start task_start, instruction_field last_line)"
    for width in (100, 200):
        out = io.StringIO()
        print_table(HEADER, [[name, *LINES[0][1:]], LINES[1]], Console(file=out, width=width))
        assert out.getvalue().count("`moelora`") == 1  # one part
        assert (name in out.getvalue()) == (width == 200)
        assert all(word in out.getvalue() for word in name.split())
        assert max(len(line) for line in out.getvalue().splitlines()) <= width


def test_a_table_without_lines_is_its_header() -> None:
    out = io.StringIO()
    print_table(HEADER, [], Console(file=out, width=100))
    assert "final average" in out.getvalue()
