"""Texts of others on a terminal: nothing in them steers it, whatever they are part of."""

from __future__ import annotations

import io
import logging
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from components.console.eta import PlannedTask
from components.console.live import Console
from components.console.tables import markdown, print_table
from components.console.terminal import Terminal
from components.core.errors import DataError
from components.core.events import EvaluationProgress
from components.core.visible import print_text, visible, visible_line
from components.evaluation.matrix import MatrixError
from pipelines.littoral import LineFormatter, guarded

CLEARS, TURNS = "a\x1b[2Jb", "c\u202ed"
# Bidi_Control of the Unicode character database, PropList.txt
BIDI = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]


def test_what_steers_is_written_out() -> None:
    assert visible("\x1b]0;title\x07") == "\\x1b]0;title\\x07"
    assert visible("safe\rfake\r\nnext\ttab\n") == "safe\\rfake\nnext\ttab\n"
    assert visible("\x9b31m \x7f \u2028 \u2029") == "\\x9b31m \\x7f \\u2028 \\u2029"
    assert visible("Größe 图片 שלום عربي 🏴‍☠️") == "Größe 图片 שלום عربي 🏴‍☠️"
    assert visible_line("a\nb\tc") == "a\\nb\\tc"


@given(st.text())
def test_nothing_that_steers_is_left(text: str) -> None:
    shown = visible(text + "".join(map(chr, BIDI)))
    steering = {char for char in shown if unicodedata.category(char) in ("Cc", "Zl", "Zp") or ord(char) in BIDI}
    assert steering <= {"\n", "\t"}
    assert visible(shown) == shown


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_neutralises_texts_and_keeps_its_own_colours(terminal: bool) -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=terminal, color_system="standard" if terminal else None, width=60)
    table = Table(title=Text(TURNS))
    table.add_column(CLEARS, min_width=12)
    table.add_row(Text(TURNS, style="red"))
    console.print(table, CLEARS, Text(TURNS, style="bold"), markup=False, highlight=False)
    followed = Console(console)
    followed.print_plan([PlannedTask(name=CLEARS, train_rows=1, test_rows=1, num_updates=60)])
    followed.handle(EvaluationProgress(after="zero-shot", task=CLEARS, done=1, total=2))
    followed.close()
    said = out.getvalue()
    assert said.count("a\\x1b[2Jb") >= (4 if terminal else 3)
    assert said.count("c\\u202ed") == 3
    assert not re.search("\x1b(?!\\[[0-9?;]*[mhlAK])", said)
    assert "\x1b[2J" not in said
    assert "\u202e" not in said
    assert ("\x1b[31m" in said) == terminal


def test_tables_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", CLEARS], [[TURNS, "1"]])
    print_text("\n".join(markdown(["name"], [["one\nline \x1b[8m"]])))
    print_text(CLEARS, to=sys.stderr)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\u202e" not in said.out
    assert "| one\\nline \\x1b[8m |" in said.out
    assert said.err == "a\\x1b[2Jb\n"


def test_an_error_that_quotes_a_damaged_file() -> None:
    assert str(DataError(f"rows.json has {CLEARS}; write it again.")) == "rows.json has a\\x1b[2Jb; write it again."
    said = str(MatrixError("The row after 'a' scores " + "x" * 100_000 + ", which is too many."))
    assert len(said) < 2100
    assert said.startswith("The row after 'a' scores xxx")
    assert said.endswith("xxx, which is too many.")


def test_a_log() -> None:
    record = logging.LogRecord(
        "littoral", logging.WARNING, "", 0, "picture %s of %s", (CLEARS, "http://me:pw@host"), None
    )
    assert LineFormatter("%(message)s").format(record) == "picture a\\x1b[2Jb of http://***@host"


def test_the_sentence_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    from components.core.errors import DataError

    def fail() -> int:
        raise DataError(f"{CLEARS}.png of s3://me:pw@host is no picture.")

    assert guarded(fail) == 1
    assert capsys.readouterr().err == "error: a\\x1b[2Jb.png of s3://***@host is no picture.\n"
