"""Conversation templates: turns become one string that records which characters users wrote and where the answers are.

Some are written here; a model's own chat template (Jinja) is in `own_template`. No template sees what users write.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.core.errors import ConfigError
from components.models.conversation import Choice, Rendered, Said, Shown, Template, without_edges
from components.models.own_template import OWN, UnusableError, own_template
from components.models.source import ProcessorFiles

# haotian-liu/LLaVA llava/conversation.py. LLaVA-1.5 and CoIN were trained with version "v1", which is conv_vicuna_v1;
# conv_llava_v1 (key "llava_v1") speaks of a human instead.
SYSTEM = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
VICUNA_SYSTEM, LLAVA_SYSTEM = SYSTEM.format("user"), SYSTEM.format("human")
WRITTEN = ("vicuna_v1", "llava_v1", "chatml", "mistral", "paligemma")


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


def mistral(turns: Sequence[Said], answering: bool) -> Rendered:
    """Mistral's form since Small 3.1, without a system turn: `<s>[INST]question[/INST]answer</s>[INST]...`."""
    out = Rendered(text="<s>")
    for turn in map(without_edges, turns):
        out.add("[INST]" if turn.speaker == "human" else "")
        start = len(out.text)
        out.say(turn)
        out.add("[/INST]" if turn.speaker == "human" else "</s>")
        if turn.speaker == "gpt":
            out.answers.append((start, len(out.text)))
    return out


def paligemma(turns: Sequence[Said], answering: bool) -> Rendered:
    """PaliGemma's form: `PICTURE<bos>question`, a line break, `answer<eos>`. It knows no other roles."""
    out = Rendered()
    for turn in map(without_edges, turns):
        start = len(out.text)
        behind = max((index for index, part in enumerate(turn.parts, 1) if isinstance(part, Shown)), default=0)
        out.say(Said("", turn.parts[:behind]))
        out.add("<bos>" if start == 0 else "")
        out.say(Said("", turn.parts[behind:]))
        out.add("\n" if turn.speaker == "human" else "<eos>")
        if turn.speaker == "gpt":
            out.answers.append((start, len(out.text)))
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
        except UnusableError as error:
            raise ConfigError(f"this backbone's chat template {error}; set backbone.template.") from error
    if name != "auto":
        allowed = ", ".join(("auto", *WRITTEN, OWN))
        raise ConfigError(f"backbone.template is {name!r}; allowed: {allowed}.")
    if expected is not None:
        return _written(expected, files, "the model expects it")
    try:
        if "strftime_now" in (files.chat_template or ""):
            raise UnusableError("writes the date of the day into every prompt")
        return own_template(files, placeholder, "the model's own, which can carry training")
    except UnusableError as error:
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
        "mistral": (mistral, "</s>"),
        "paligemma": (paligemma, "<eos>"),
    }
    render, end = templates[name]
    if end not in files.tokenizer.get_vocab():
        raise ConfigError(
            f"backbone.template {name} ends answers with {end}, which is not a token of this backbone; "
            "choose another template."
        )
    return Choice(name=name, why=why, render=render, end=end)
