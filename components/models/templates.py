"""Conversation templates: turns become one string that records which characters users wrote and where the answers are.

Three templates are defined here; a model's own chat template (Jinja) is the fourth. No template sees what users write:
the model's own is run on markers, which the texts then replace.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import NamedTuple, Protocol, cast

from jinja2 import TemplateError

from components.core.errors import ConfigError
from components.models.source import ProcessorFiles

Span = tuple[int, int]  # characters, the end not included


class Shown(str):
    """What stands for a picture in a turn; unlike texts, it is the template's and may hold special tokens."""


class Said(NamedTuple):
    """One turn as a template takes it: texts and pictures."""

    speaker: str  # "human" or "gpt"
    parts: tuple[str | Shown, ...]


@dataclass(kw_only=True)
class Rendered:
    """A conversation as text; what is outside `said` comes from the template."""

    text: str = ""
    said: list[Span] = field(default_factory=list)
    """What users wrote: questions and answers."""
    answers: list[Span] = field(default_factory=list)
    """Answers with their end token, in order."""

    def add(self, text: str) -> None:
        """Text of the template."""
        self.text += text

    def say(self, turn: Said) -> None:
        """Text of a user, and pictures where they belong."""
        for part in turn.parts:
            if isinstance(part, Shown):
                self.text += part
            else:
                self.said.append((len(self.text), len(self.text) + len(part)))
                self.text += part


class Template(Protocol):
    """Renders turns; with `answering`, the text ends where the model is to continue."""

    def __call__(self, turns: Sequence[Said], answering: bool) -> Rendered: ...


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The template of one backbone."""

    name: str
    """vicuna_v1, llava_v1, chatml, or chat: the model's own."""
    why: str
    render: Template
    end: str
    """The token that ends every answer."""


# haotian-liu/LLaVA llava/conversation.py. LLaVA-1.5 and CoIN were trained with version "v1", which is conv_vicuna_v1;
# conv_llava_v1 (key "llava_v1") speaks of a human instead.
SYSTEM = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
VICUNA_SYSTEM, LLAVA_SYSTEM = SYSTEM.format("user"), SYSTEM.format("human")
OWN, WRITTEN = "chat", ("vicuna_v1", "llava_v1", "chatml")


def vicuna(system: str) -> Template:
    """LLaVA-1.5's form: `SYSTEM USER: question ASSISTANT: answer</s>USER: ...`."""

    def template(turns: Sequence[Said], answering: bool) -> Rendered:
        out = Rendered(text=system + " ")
        for turn in turns:
            if turn.speaker == "human":
                out.add("USER: ")
                out.say(turn)
                out.add(" ")
            else:
                out.add("ASSISTANT:")
                start = len(out.text)  # a prompt ends here, so the model generates the blank
                out.add(" ")
                out.say(turn)
                out.add("</s>")
                out.answers.append((start, len(out.text)))
        out.add("ASSISTANT:" if answering else "")
        return out

    return template


def chatml(turns: Sequence[Said], answering: bool) -> Rendered:
    """ChatML without a system turn (it would cost 20 tokens a sample) and without a line break after the last turn."""
    out = Rendered()
    for index, turn in enumerate(turns):
        human = turn.speaker == "human"
        out.add(("\n" if index else "") + f"<|im_start|>{'user' if human else 'assistant'}\n")
        start = len(out.text)
        out.say(turn)
        out.add("<|im_end|>")
        if not human:
            out.answers.append((start, len(out.text)))
    out.add("\n<|im_start|>assistant\n" if answering else "")
    return out


def choose_template(
    name: str, files: ProcessorFiles, *, placeholder: str | None, expected: str | None = None
) -> Choice:
    """The template called `name`, and why it is this one; raises `ConfigError` where it does not suit the model.

    `placeholder` is what a chat template writes for a picture; None: the model takes none. "auto" is the template that
    an embedded model or a family expects (`expected`), else the model's own chat template where it can carry training,
    else the one of ours that goes with the tokenizer.
    """
    if name in WRITTEN:
        return _written(name, files, "as asked for")
    if name == OWN:
        try:
            return own_template(files, placeholder, "as asked for")
        except _UnusableError as error:
            raise ConfigError(f"this backbone's chat template {error}; set backbone.template.") from error
    if name != "auto":
        allowed = ", ".join(("auto", *WRITTEN, OWN))
        raise ConfigError(f"backbone.template is {name!r}; allowed: {allowed}.")
    if expected is not None:
        return _written(expected, files, "the model expects it")
    try:
        if "strftime_now" in (files.chat_template or ""):
            raise _UnusableError("writes the date of the day into every prompt")
        return own_template(files, placeholder, "the model's own, which can carry training")
    except _UnusableError as error:
        reason = f"the model's own chat template {error}" if files.chat_template else "the model has no chat template"
    if "<|im_start|>" in files.tokenizer.get_vocab():
        return _written("chatml", files, reason)
    if files.tokenizer.eos_token == "</s>":
        return _written("vicuna_v1", files, reason)
    raise ConfigError(f"no template suits this backbone: {reason}; set backbone.template to {' or '.join(WRITTEN)}.")


def _written(name: str, files: ProcessorFiles, why: str) -> Choice:
    """One of this module's own templates; its end token must be a token of the model."""
    templates: dict[str, tuple[Template, str]] = {
        "vicuna_v1": (vicuna(VICUNA_SYSTEM), "</s>"),
        "llava_v1": (vicuna(LLAVA_SYSTEM), "</s>"),
        "chatml": (chatml, "<|im_end|>"),
    }
    render, end = templates[name]
    if end not in files.tokenizer.get_vocab():
        raise ConfigError(
            f"backbone.template {name} ends answers with {end}, which is not a token of this backbone; "
            "choose another template."
        )
    return Choice(name=name, why=why, render=render, end=end)


# ---- the model's own ---------------------------------------------------------------------------------------------


class _UnusableError(Exception):
    """Why a chat template cannot carry training; a sentence without its subject."""


_QUESTION, _ANSWER = Said("human", ("?",)), Said("gpt", ("!",))
_PICTURE = Said("human", (Shown(), "?"))
# What a template must handle: several turns without a picture, and a picture in any question.
_TEXT_PROBES = ((_QUESTION, _ANSWER), (_QUESTION, _ANSWER, _QUESTION, _ANSWER))
_PICTURE_PROBES = ((_PICTURE, _ANSWER, _QUESTION, _ANSWER), (_QUESTION, _ANSWER, _PICTURE, _ANSWER))


def own_template(files: ProcessorFiles, placeholder: str | None, why: str) -> Choice:
    """The model's own chat template, its system turn included; raises `_UnusableError` where it cannot carry training.

    It must keep the turns as they are and in order, extend its own text as the conversation grows, show every picture
    once, and end each answer with the same token.
    """
    if files.chat_template is None:
        raise _UnusableError("is missing")
    probes = _TEXT_PROBES if placeholder is None else (*_TEXT_PROBES, *_PICTURE_PROBES)
    first: _UnusableError | None = None
    for in_parts in (True, False):  # messages as lists of parts, or as plain strings: templates know one of them
        template = _Own(files, placeholder, in_parts=in_parts)
        try:
            ends = {end for probe in probes for end in template.ends(probe)}
            if len(ends) != 1:
                raise _UnusableError(f"ends answers with different tokens ({', '.join(sorted(ends))})")
        except _UnusableError as error:
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
        turns = [self._without_edges(turn) for turn in turns] if self.in_parts else turns
        try:
            skeleton = self.skeleton(_shape(turns), answering)
        except _UnusableError as error:  # of a shape that no probe has
            raise ConfigError(f"this backbone's chat template {error}; set backbone.template.") from error
        parts = [part for turn in turns for part in turn.parts]
        out, starts = Rendered(), []
        for index, piece in enumerate(skeleton.pieces):
            starts.append(len(out.text))
            out.add(piece)
            out.say(Said("", tuple(parts[index : index + 1])))
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
        parts, found = [str(part) for turn in turns for part in turn.parts], self.mark.findall(text)
        if [each for each in found if each != self.placeholder] != [each for each in parts if each != self.placeholder]:
            raise _UnusableError("drops, repeats or rewrites turns")
        if found != parts:
            raise _UnusableError("does not show each picture once, where it belongs")
        pieces = self.mark.split(text)
        answers: list[tuple[tuple[int, int], tuple[int, int]]] = []
        ends: list[str] = []
        for index, turn in enumerate(turns):
            if turn.speaker == "human":
                continue
            prompt, mark = self._rendered(turns[:index], True), cast(str, turn.parts[0])
            start = text.index(mark)
            if not text.startswith(prompt) or text[len(prompt) : start].strip():
                raise _UnusableError("does not keep what it wrote when a conversation grows")
            end = self.end.match(text, start + len(mark))
            if end is None:
                raise _UnusableError("does not end answers with a token")
            answers.append((self._place(text, len(prompt)), self._place(text, end.end())))
            ends.append(end[1])
        return _Skeleton(pieces=pieces, answers=answers, ends=tuple(ends))

    def _rendered(self, turns: Sequence[Said], answering: bool) -> str:
        messages = [self._message(turn) for turn in turns]
        apply = cast(Callable[..., str], self.files.tokenizer.apply_chat_template)
        try:
            return apply(
                messages, chat_template=self.files.chat_template, tokenize=False, add_generation_prompt=answering
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise _UnusableError(f"failed ({error})") from error

    def _message(self, turn: Said) -> dict[str, object]:
        role = "user" if turn.speaker == "human" else "assistant"
        if not self.in_parts:
            return {"role": role, "content": "".join(turn.parts)}
        parts = [
            {"type": "image"} if isinstance(part, Shown) else {"type": "text", "text": part} for part in turn.parts
        ]
        return {"role": role, "content": parts}

    def _without_edges(self, turn: Said) -> Said:
        """Without the whitespace between pictures and texts: the template writes its own."""
        if not any(isinstance(part, Shown) for part in turn.parts):
            return turn
        parts = [part for part in turn.parts if isinstance(part, Shown) or part.strip()]
        texts = [index for index, part in enumerate(parts) if not isinstance(part, Shown)]
        if texts and texts[0] > 0:
            parts[texts[0]] = parts[texts[0]].lstrip()
        if texts and texts[-1] < len(parts) - 1:
            parts[texts[-1]] = parts[texts[-1]].rstrip()
        return Said(turn.speaker, tuple(parts))

    def _place(self, text: str, at: int) -> tuple[int, int]:
        """A position in a text with marks: the number of the piece between them, and the characters into that piece."""
        before = list(self.mark.finditer(text, 0, at))
        return len(before), at - (before[-1].end() if before else 0)


def _shape(turns: Sequence[Said]) -> Shape:
    return tuple((turn.speaker, tuple(not isinstance(part, Shown) for part in turn.parts)) for turn in turns)
