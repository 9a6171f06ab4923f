"""The model's own chat template. It is run on markers, so it never sees what users write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple, cast

from jinja2 import TemplateError

from components.core.errors import ConfigError
from components.models.conversation import Choice, Rendered, Said, Shown, without_edges
from components.models.source import ProcessorFiles

OWN = "chat"


class UnusableError(Exception):
    """Why a chat template cannot carry training; a sentence without its subject."""


_QUESTION, _ANSWER = Said("human", ("?",)), Said("gpt", ("!",))
_PICTURE = Said("human", (Shown(), "?"))
# What a template must handle: several turns without a picture, and a picture in any question.
_TEXT_PROBES = ((_QUESTION, _ANSWER), (_QUESTION, _ANSWER, _QUESTION, _ANSWER))
_PICTURE_PROBES = ((_PICTURE, _ANSWER, _QUESTION, _ANSWER), (_QUESTION, _ANSWER, _PICTURE, _ANSWER))


def own_template(files: ProcessorFiles, placeholder: str | None, why: str) -> Choice:
    """The model's own chat template, its system turn included; raises `UnusableError` where it cannot carry training.

    It must keep the turns as they are and in order, extend its own text as the conversation grows, show every picture
    once, and end each answer with the same token.
    """
    if files.chat_template is None:
        raise UnusableError("is missing")
    probes = _TEXT_PROBES if placeholder is None else (*_TEXT_PROBES, *_PICTURE_PROBES)
    first: UnusableError | None = None
    for in_parts in (True, False):  # messages as lists of parts, or as plain strings: templates know one of them
        template = _Own(files, placeholder, in_parts=in_parts)
        try:
            ends = {end for probe in probes for end in template.ends(probe)}
            if len(ends) != 1:
                raise UnusableError(f"ends answers with different tokens ({', '.join(sorted(ends))})")
        except UnusableError as error:
            first = first or error
            continue
        return Choice(name=OWN, why=why, render=template, end=ends.pop())
    assert first is not None
    raise first


Shape = tuple[tuple[str, tuple[bool, ...]], ...]  # of each turn: who speaks, and which parts are texts
_MARK = "\ue000\\d+\ue001"  # takes the place of a text


class _Skeleton(NamedTuple):
    """What a template writes around the texts and pictures of all conversations of one shape."""

    pieces: list[str]  # one more than there are texts and pictures
    order: list[int]  # which text or picture, counted over all turns, stands behind each piece but the last
    answers: list[tuple[tuple[int, int], tuple[int, int]]]  # start and end, each as piece and characters into it
    ends: tuple[str, ...]  # the token that ends each answer


class _Own:
    """A Jinja template, run on markers. The texts themselves do not matter, so it is run once for each shape."""

    def __init__(self, files: ProcessorFiles, placeholder: str | None, *, in_parts: bool) -> None:
        self.files = files
        self.placeholder = placeholder
        self.in_parts = in_parts
        self.mark = re.compile(_MARK if placeholder is None else f"{_MARK}|{re.escape(placeholder)}")
        tokens = [token.content for token in files.tokenizer.added_tokens_decoder.values()]
        known = sorted({*tokens, *files.tokenizer.all_special_tokens} - {placeholder or ""}, key=len)
        self.end = re.compile(r"\s*(" + "|".join(re.escape(token) for token in reversed(known)) + ")")
        self.skeleton = lru_cache(maxsize=256)(self._skeleton)

    def __call__(self, turns: Sequence[Said], answering: bool) -> Rendered:
        turns = [without_edges(turn) for turn in turns] if self.in_parts else turns
        try:
            skeleton = self.skeleton(_shape(turns), answering)
        except UnusableError as error:  # of a shape that no probe has
            raise ConfigError(f"this backbone's chat template {error}; set backbone.template.") from error
        parts = [part for turn in turns for part in turn.parts]
        out, starts = Rendered(), []
        for piece, part in zip(skeleton.pieces, [*skeleton.order, None], strict=True):
            starts.append(len(out.text))
            out.add(piece)
            out.say(Said("", () if part is None else (parts[part],)))
        out.answers = [(starts[piece] + start, starts[last] + end) for (piece, start), (last, end) in skeleton.answers]
        return out

    def ends(self, turns: Sequence[Said]) -> tuple[str, ...]:
        """The token that ends each answer of a conversation."""
        self.skeleton(_shape(turns[:-1]), True)
        return self.skeleton(_shape(turns), False).ends

    def _skeleton(self, shape: Shape, answering: bool) -> _Skeleton:
        number, shown = count(), Shown(self.placeholder or "")
        turns = [
            Said(speaker, tuple(f"\ue000{next(number)}\ue001" if said else shown for said in parts))
            for speaker, parts in shape
        ]
        text = self._rendered(turns, answering)
        order = self._order(turns, self.mark.findall(text))
        answers: list[tuple[tuple[int, int], tuple[int, int]]] = []
        ends: list[str] = []
        for index, turn in enumerate(turns):
            if turn.speaker == "human":
                continue
            prompt, mark = self._rendered(turns[:index], True), cast(str, turn.parts[0])
            start = text.index(mark)
            if prompt.split() != text[:start].split():
                raise UnusableError("does not keep what it wrote when a conversation grows")
            begin = len(prompt) if text.startswith(prompt) else start
            if begin == start and not answering:
                # Some templates write a blank into a history that they do not write into a prompt. What is learned
                # stands behind the prompt's words, as it will when the model is asked.
                before, opening = self._split_last(text[:start])[0], self._split_last(prompt)[1]
                text, start = before + opening + text[start:], len(before + opening)
                begin = start
            end = self.end.match(text, start + len(mark))
            if end is None:
                raise UnusableError("does not end answers with a token")
            answers.append((self._place(text, begin), self._place(text, end.end())))
            ends.append(end[1])
        return _Skeleton(pieces=self.mark.split(text), order=order, answers=answers, ends=tuple(ends))

    def _order(self, turns: Sequence[Said], found: Sequence[str]) -> list[int]:
        """The parts of all turns in the order in which they were written; pictures may be moved within their turn."""
        texts = [part for turn in turns for part in turn.parts if not isinstance(part, Shown)]
        if [each for each in found if each != self.placeholder] != texts:
            raise UnusableError("drops, repeats or rewrites turns")
        order = list[int]()
        for turn in turns:
            first = len(order)
            here = found[first : first + len(turn.parts)]
            if sorted(here) != sorted(turn.parts):
                raise UnusableError("does not show each picture once, in its turn")
            shown = iter([index for index, part in enumerate(turn.parts) if isinstance(part, Shown)])
            order += [first + (next(shown) if each == self.placeholder else turn.parts.index(each)) for each in here]
        if len(order) != len(found):
            raise UnusableError("does not show each picture once, in its turn")
        return order

    def _split_last(self, text: str) -> tuple[str, str]:
        """A text up to the end of its last mark, and what is behind it."""
        marks = [*self.mark.finditer(text)]
        at = marks[-1].end() if marks else 0
        return text[:at], text[at:]

    def _rendered(self, turns: Sequence[Said], answering: bool) -> str:
        messages = [self._message(turn) for turn in turns]
        apply = cast(Callable[..., str], self.files.tokenizer.apply_chat_template)
        try:
            return apply(
                messages, chat_template=self.files.chat_template, tokenize=False, add_generation_prompt=answering
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UnusableError(f"failed ({error})") from error

    def _message(self, turn: Said) -> dict[str, object]:
        role = "user" if turn.speaker == "human" else "assistant"
        if not self.in_parts:
            return {"role": role, "content": "".join(turn.parts)}
        parts = [
            {"type": "image"} if isinstance(part, Shown) else {"type": "text", "text": part} for part in turn.parts
        ]
        return {"role": role, "content": parts}

    def _place(self, text: str, at: int) -> tuple[int, int]:
        """A position in a text with marks: the number of the piece between them, and the characters into that piece."""
        before = list(self.mark.finditer(text, 0, at))
        return len(before), at - (before[-1].end() if before else 0)


def _shape(turns: Sequence[Said]) -> Shape:
    return tuple((turn.speaker, tuple(not isinstance(part, Shown) for part in turn.parts)) for turn in turns)
