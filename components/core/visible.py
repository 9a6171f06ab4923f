"""Texts from data, models and file names as people see them: nothing in them steers a terminal or turns a page around.

A reply may hold escape sequences that clear the screen, recolour it or write a fake line, and marks that make what
follows run from right to left. They are shown as Python writes them (`\\x1b`, `\\u202e`), on terminals and on pages;
files with data keep them.

Light on purpose: `littoral --help` imports this.
"""

from __future__ import annotations

import re
import sys
from typing import TextIO

# Control characters but line feed and tab, the two separators that some programs break lines at, and the marks of
# Unicode's bidirectional algorithm (UAX 9, section 2).
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with every character that steers a terminal or a page written out; line ends become a line feed."""
    return _STEERING.sub(_written_out, text.replace("\r\n", "\n"))


def visible_line(text: str) -> str:
    """`visible` for what must stay on one line, such as a name: line feeds and tabs are written out too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def print_text(text: object = "", *, to: TextIO | None = None, flush: bool = False) -> None:
    """`print` for everything that may hold a text of others; `to` is standard output by default."""
    print(visible(str(text)), file=to or sys.stdout, flush=flush)


def _written_out(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()
