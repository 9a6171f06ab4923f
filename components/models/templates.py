"""Conversation templates: turns to one string, and where the answers are in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

from jinja2 import TemplateError
from transformers import LlavaProcessor

from components.data.rows import Turn
from components.errors import ConfigError


class Rendered(NamedTuple):
    """A conversation as text; `spans` are (start, end) characters of answers with their end-of-turn token."""

    text: str
    spans: list[tuple[int, int]]


class Template(Protocol):
    """Renders turns; `answering` ends the text where the model is to go on."""

    def __call__(self, turns: Sequence[Turn], answering: bool) -> Rendered: ...


# The system sentence LLaVA-1.5 was trained with (Vicuna v1.1's); models only answer well under the prompt they know.
VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def vicuna_v1(turns: Sequence[Turn], answering: bool) -> Rendered:
    """LLaVA-1.5: `SYSTEM USER: question ASSISTANT: answer</s>USER: ...`."""
    text, spans = VICUNA_SYSTEM + " ", []
    for turn in turns:
        if turn.speaker == "human":
            text += f"USER: {turn.text} "
        else:
            start = len(text) + len("ASSISTANT:")  # a prompt ends here, so the blank is the model's to give
            text += f"ASSISTANT: {turn.text}</s>"
            spans.append((start, len(text)))
    return Rendered(text + "ASSISTANT:" if answering else text, spans)


def chatml(turns: Sequence[Turn], answering: bool) -> Rendered:
    """ChatML without a system turn (it would cost 20 tokens a sample) and without a line break after the last turn."""
    text, spans = "", []
    for index, turn in enumerate(turns):
        text += "\n" if index else ""
        if turn.speaker == "human":
            text += f"<|im_start|>user\n{turn.text}<|im_end|>"
        else:
            text += "<|im_start|>assistant\n"
            start = len(text)
            text += f"{turn.text}<|im_end|>"
            spans.append((start, len(text)))
    return Rendered(text + "\n<|im_start|>assistant\n" if answering else text, spans)


def template_for(name: str, processor: LlavaProcessor) -> Template:
    """The template called `name`; "auto" goes by the tokenizer: ChatML's tokens, then Llama's `</s>`, then its own."""
    named: dict[str, Template] = {"vicuna_v1": vicuna_v1, "chatml": chatml}
    if name in named:
        return named[name]
    if name == "auto":
        if "<|im_start|>" in processor.tokenizer.get_vocab():
            return chatml
        if processor.tokenizer.eos_token == "</s>":
            return vicuna_v1
    elif name != "chat":
        raise ConfigError(f"backbone.template is {name!r}; allowed: auto, vicuna_v1, chatml, chat.")
    return own_template(processor)


def own_template(processor: LlavaProcessor) -> Template:
    """The model's own chat template. It must grow turn by turn and end each answer with the tokenizer's eos."""
    eos = str(processor.tokenizer.eos_token)
    image_token = processor.image_token
    if processor.chat_template is None and processor.tokenizer.chat_template is None:
        raise ConfigError("this backbone has no chat template; set backbone.template to vicuna_v1 or chatml.")
    source = processor.apply_chat_template if processor.chat_template is not None else None
    apply = cast(Callable[..., str], source or processor.tokenizer.apply_chat_template)

    def render(turns: Sequence[Turn], *, prompt: bool) -> str:
        messages = [_message(turn, image_token if source is not None else None) for turn in turns]
        try:
            return apply(messages, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            raise ConfigError(f"this backbone's chat template failed ({error}); set backbone.template.") from error

    def template(turns: Sequence[Turn], answering: bool) -> Rendered:
        text, spans = render(turns, prompt=answering), []
        for index, turn in enumerate(turns):
            if turn.speaker != "gpt":
                continue
            before, after = render(turns[:index], prompt=True), render(turns[: index + 1], prompt=False)
            if (
                not (text.startswith(after.rstrip()) and after.startswith(before.rstrip()))
                or eos not in after[len(before) :]
            ):
                raise ConfigError(
                    f"this backbone's chat template does not end answers with {eos!r} or rewrites earlier turns, so "
                    "answers cannot be marked; set backbone.template to vicuna_v1 or chatml."
                )
            spans.append((len(before), after.rindex(eos) + len(eos)))
        return Rendered(text, spans)

    return template


def _message(turn: Turn, image_token: str | None) -> dict[str, object]:
    """One message in the form processors (parts) or plain tokenizers (a string) take."""
    role = "user" if turn.speaker == "human" else "assistant"
    if image_token is None:
        return {"role": role, "content": turn.text}
    parts: list[dict[str, str]] = []
    if image_token in turn.text:
        parts.append({"type": "image"})
    parts.append({"type": "text", "text": turn.text.replace(image_token, "").strip()})
    return {"role": role, "content": parts}
