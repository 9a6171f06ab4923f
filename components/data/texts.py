"""Checks of texts that need no model: names of special tokens, and answers that are longer than replies may be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from components.data.rows import IMAGE_TOKEN, Row

CHARACTERS_PER_TOKEN = 4  # of English, roughly; a backbone's plan counts its own tokens

# Names that common tokenizers give to their special tokens. `<|...|>` is the form of most newer ones.
_NAMES = (
    "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<bos>", "<eos>", "<image>", "<video>", "<audio>", "<empty_output>",
    "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>",
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<IMG_CONTEXT>", "<img>", "</img>",
    "<tool_call>", "</tool_call>", "<think>", "</think>",
)  # fmt: skip
_SPECIAL = re.compile("|".join([*map(re.escape, _NAMES), r"<\|[A-Za-z0-9_/-]{1,40}\|>", r"<\uff5c[^<>]{1,40}\uff5c>"]))


def special_tokens(row: Row) -> set[str]:
    """Names of special tokens in what users wrote, apart from the placeholders of the row's pictures."""
    texts, left = list[str](), len(row.pictures)
    for turn in row.turns:
        shown = min(left, turn.text.count(IMAGE_TOKEN)) if turn.speaker == "human" else 0
        texts.append(turn.text.replace(IMAGE_TOKEN, "", shown))
        left -= shown
    return {found[0] for text in [*texts, *row.answers] for found in _SPECIAL.finditer(text)}


@dataclass(kw_only=True)
class TextFacts:
    """Counts over the texts of one split."""

    rows: int = 0
    special_rows: int = 0
    """Rows with the name of a special token in a text."""
    special: dict[str, int] = field(default_factory=dict)
    """The same rows by name."""
    max_new_tokens: int | None = None
    """How many tokens a reply may have; None for rows that are not answered."""
    long_answers: int = 0
    """Rows whose accepted answers all look longer than that: more than 4 characters a token."""
    longest: int = 0
    """Characters of the longest of them."""

    def add(self, row: Row) -> None:
        """Look at one row."""
        self.rows += 1
        found = special_tokens(row)
        self.special_rows += bool(found)
        for name in found:
            self.special[name] = self.special.get(name, 0) + 1
        if self.max_new_tokens is None or row.metric == "constraints":
            return
        shortest = min(len(answer) for answer in row.answers)
        if shortest > CHARACTERS_PER_TOKEN * self.max_new_tokens:
            self.long_answers += 1
            self.longest = max(self.longest, shortest)

    @property
    def remarks(self) -> list[str]:
        """What a user should know, as sentences without a period."""
        said: list[str] = []
        if self.special_rows:
            ranked = sorted(self.special.items(), key=lambda item: (-item[1], item[0]))
            names = ", ".join(f"{name} {count:,}" for name, count in ranked)
            said.append(
                f"{self.special_rows:,} of {self.rows:,} rows have names of special tokens in their texts ({names}); "
                "they are learned and asked as plain text"
            )
        if self.long_answers:
            said.append(
                f"{self.long_answers:,} of {self.rows:,} answers look longer than max_new_tokens = "
                f"{self.max_new_tokens} lets a reply be (the longest has {self.longest:,} characters, a token has "
                f"about {CHARACTERS_PER_TOKEN}); give the task a larger max_new_tokens"
            )
        return said
