"""The pages in the order of the menu, and the commands on them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_HERE_DOCUMENT = re.compile(r"<<'(\w+)'([^\n]*\n).*?^\1$", re.DOTALL | re.MULTILINE)
_OURS = re.compile(r"(?:\S*python )?pipelines/(\w+)\.py|littoral")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced bash block; its title, where it has one, says why it is not run with the others."""

    page: str
    title: str
    text: str

    def commands(self) -> list[list[str]]:
        """Littoral's commands in it, as a name and arguments: ["coast", "pocket", "--dry-run"]."""
        text = _HERE_DOCUMENT.sub(r"\2", self.text).replace("\\\n", " ")
        simple = [part for line in text.splitlines() for part in re.split(r"&&|\|", line)]
        found = [shlex.split(part[match.start() :], comments=True) for part in simple if (match := _OURS.search(part))]
        return [_named(words) for words in found if not words[0].startswith("#")]


def pages() -> dict[str, str]:
    """Paths and texts: the README, the pages of the menu and CONTRIBUTING; pages that are made by docs/hooks.py not."""
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    paths = ["README.md", *(f"docs/{name}" for name in _leaves(menu)), "CONTRIBUTING.md"]
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in paths if (ROOT / path).is_file()}


def blocks() -> list[Block]:
    """All bash blocks, in the order of the pages."""
    found = [(page, match) for page, text in pages().items() for match in _FENCE.finditer(text)]
    return [Block(page=page, title=_title(m[3]), text=m[4]) for page, m in found if m[2] == "bash"]


def prose(text: str) -> str:
    """A page without its bash blocks."""
    return _FENCE.sub(lambda match: "" if match[2] == "bash" else match[0], text)


def _named(words: list[str]) -> list[str]:
    if words[0] == "littoral":
        return words[1:]
    script = next(number for number, word in enumerate(words) if word.endswith(".py"))
    return [Path(words[script]).stem.replace("_", "-"), *words[script + 1 :]]


def _title(rest: str) -> str:
    found = re.search(r'title="([^"]+)"', rest)
    return found[1] if found else ""


def _leaves(menu: object) -> list[str]:
    if isinstance(menu, str):
        return [menu]
    parts = menu.values() if isinstance(menu, dict) else menu if isinstance(menu, list) else ()
    return [leaf for part in parts for leaf in _leaves(part)]
