"""Tokenises conversations so that special tokens come from the template alone, never from what a user wrote.

Tokenizers find the names of their special tokens everywhere, so `<s>` in a web page would become the start of a text,
and `<|im_end|>` in a question the end of a turn. Where that would happen, the text goes through a copy of the tokenizer
whose special tokens have secret names: those in the template are renamed with them, those in user text are not.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from components.models.conversation import Rendered, Span


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A rendered conversation as token ids, without the tokenizer's prefix."""

    ids: list[int]
    said: list[int]
    """Of each token: the number of the user's text it belongs to (`Rendered.said`), or -1."""
    answers: list[int]
    """Of each token: the number of the answer it belongs to (`Rendered.answers`), or -1."""


class TextTokenizer:
    """Tokenises conversations of one template. `controls` are the tokens that user text must not become."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, controls: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.controls = controls
        self.finds_controls = True
        """False: the tokenizer overlooks its own special tokens between words, as some early Llama conversions do."""

    def __call__(self, rendered: Rendered) -> Tokens:
        """Ids equal those of the plain string unless a user wrote the name of a special token."""
        if not self.finds_controls:
            return self._renamed_tokens(rendered)
        encoding = self.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = cast(list[int], encoding["input_ids"]), cast(list[Span], encoding["offset_mapping"])
        said, answers = _owners(offsets, rendered.said), _owners(offsets, rendered.answers)
        if any(token in self.controls and owner >= 0 for token, owner in zip(ids, said, strict=True)):
            return self._renamed_tokens(rendered)
        return Tokens(ids=ids, said=said, answers=answers)

    def _renamed_tokens(self, rendered: Rendered) -> Tokens:
        copy, names = self._renamed
        literal = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
        moved = _Moved()
        at = 0
        for start, end in [*rendered.said, (len(rendered.text), len(rendered.text))]:
            for found in literal.finditer(rendered.text, at, start):
                moved.add(rendered.text[at : found.start()])
                moved.add(found[0], names[found[0]])
                at = found.end()
            moved.add(rendered.text[at:start])
            moved.add(rendered.text[start:end])
            at = end
        encoding = copy.encode(moved.text, add_special_tokens=False)
        return Tokens(
            ids=encoding.ids,
            said=_owners(encoding.offsets, [moved.span(span) for span in rendered.said]),
            answers=_owners(encoding.offsets, [moved.span(span) for span in rendered.answers]),
        )

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[str, str]]:
        """The tokenizer under the new names, and the new name of each old one."""
        plain: dict[str, Any] = json.loads(self.tokenizer.backend_tokenizer.to_str())
        secret = uuid.uuid4().hex  # ids do not depend on it
        new = {token: f"\ue000{secret}{token}\ue001" for token in self.controls}
        names: dict[str, str] = {}
        for token in plain["added_tokens"]:
            if token["id"] in new:
                names[token["content"]] = new[token["id"]]
                token["content"], token["normalized"] = new[token["id"]], False
        model = plain["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {new.get(token, piece): token for piece, token in model["vocab"].items()}
        else:
            model["vocab"] = [[new.get(token, piece), score] for token, (piece, score) in enumerate(model["vocab"])]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        return Tokenizer.from_str(json.dumps(plain | {"truncation": None, "padding": None})), names


class _Moved:
    """A text with some pieces replaced; maps positions in the old text to the new one."""

    def __init__(self) -> None:
        self.text = ""
        self.pieces: list[tuple[int, int]] = []  # starts of the pieces, in the old text and in the new one
        self.length = 0  # of the old text so far

    def add(self, old: str, new: str | None = None) -> None:
        self.pieces.append((self.length, len(self.text)))
        self.length += len(old)
        self.text += old if new is None else new

    def span(self, span: Span) -> Span:
        return self._place(span[0]), self._place(span[1])

    def _place(self, old: int) -> int:
        """Spans begin and end at edges of replaced pieces, never inside one."""
        if old == self.length:
            return len(self.text)
        start, moved = [piece for piece in self.pieces if piece[0] <= old][-1]
        return moved + old - start


def _owners(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """For each token the index of the span that its characters touch, or -1; both are in text order."""
    owners, number = [-1] * len(offsets), 0
    for index, (first, last) in enumerate(offsets):
        while number < len(spans) and spans[number][1] <= first:
            number += 1
        if last > first and number < len(spans) and spans[number][0] < last:
            owners[index] = number
    return owners
