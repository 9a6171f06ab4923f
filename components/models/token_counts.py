"""Tokens of many conversations at once: their number alone, which is several times quicker than encoding them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from components.models.conversation import Rendered, Said, Shown
from components.models.user_text import TextTokenizer

Shape = tuple[tuple[str, ...], ...]  # of each turn: its pictures' texts, and "" for what a user wrote


class Counting(NamedTuple):
    """A conversation to be counted."""

    turns: Sequence[Said]
    rendered: Rendered
    beside: int
    """What is added to the tokens of the text: a start token, and all but the first of each picture's tokens."""


class TokenCounter:
    """Counts what `TextTokenizer` would give.

    It never looks where a token lies, so it can only count where every special token is the template's. That is certain
    where no user text holds a character with which the name of one begins, and as many were found as in another
    conversation of the same shape. All other conversations are tokenised in full.
    """

    def __init__(self, tokenise: TextTokenizer, *, end_id: int) -> None:
        self.tokenise = tokenise
        tokenizer: Any = tokenise.tokenizer  # the library does not type its backend
        names = cast(list[str], tokenizer.convert_ids_to_tokens(sorted(tokenise.controls)))
        self._suspect = re.compile(f"[{''.join(re.escape(first) for first in sorted({name[0] for name in names}))}]")
        # An end token that is not found apart from the text before it would have to be looked for in each answer.
        self.applies = tokenise.finds_controls and end_id in tokenise.controls and "" not in names
        self._backend = tokenizer.backend_tokenizer
        self._of_template: dict[tuple[Shape, bool], int] = {}

    def counts(self, given: Sequence[Counting], *, answering: bool, in_full: Callable[[int], int]) -> list[int]:
        """The number of tokens of each conversation; `in_full` encodes the one with this index and counts."""
        plain = [index for index, each in enumerate(given) if self.applies and self._is_plain(each.turns)]
        # Without truncation and padding, as transformers sets the same backend before each call without them.
        self._backend.no_truncation()
        self._backend.no_padding()
        texts = [given[index].rendered.text for index in plain]
        found = dict(zip(plain, self._backend.encode_batch_fast(texts, add_special_tokens=False), strict=True))
        counts: list[int] = []
        for index, each in enumerate(given):
            if index not in found:
                counts.append(in_full(index))
                continue
            ids = cast(list[int], found[index].ids)
            special = sum(map(self.tokenise.controls.__contains__, ids))
            expected = self._expected(each, answering=answering)
            counts.append(len(ids) + each.beside if special == expected else in_full(index))
        return counts

    def _is_plain(self, turns: Sequence[Said]) -> bool:
        return not any(
            self._suspect.search(part) for turn in turns for part in turn.parts if not isinstance(part, Shown)
        )

    def _expected(self, given: Counting, *, answering: bool) -> int:
        """How many special tokens the template writes around a conversation of this shape."""
        shape = tuple(tuple(part if isinstance(part, Shown) else "" for part in turn.parts) for turn in given.turns)
        if (shape, answering) not in self._of_template:
            tokens = self.tokenise(given.rendered)
            self._of_template[shape, answering] = sum(
                token in self.tokenise.controls and owner < 0
                for token, owner in zip(tokens.ids, tokens.said, strict=True)
            )
        return self._of_template[shape, answering]
