"""What transformers itself makes of a conversation: ids and tensors, logits, greedy replies. Knows nothing of Littoral.

Processors with a video part ask for torchvision because of it. Here the processor's class is built without one, from
the tokenizer and the image processor of the checkpoint; everything that concerns pictures is the class's own code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

Message = dict[str, Any]  # role, and content: a list of {"type": "image", "image": ...} and {"type": "text", ...}

PLAIN: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}


def said(role: str, *parts: str | Image.Image) -> Message:
    """One message of texts and pictures."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return {"role": role, "content": content}


class Maker(Protocol):
    """Makes ids and tensors of one conversation."""

    def __call__(self, messages: Sequence[Message], *, answering: bool) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A checkpoint as transformers reads it."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    make: Maker

    def inputs(self, messages: Sequence[Message], *, answering: bool = True) -> dict[str, Tensor]:
        """What the model gets for one conversation; with `answering`, one that it is to continue."""
        return dict(self.make(messages, answering=answering))

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [T, vocabulary] of one conversation."""
        return self.model(**inputs).logits[0]

    @torch.no_grad()
    def reply(self, inputs: Mapping[str, Tensor], *, max_new_tokens: int) -> list[int]:
        """The greedy reply to one conversation, cut before the token that ends it."""
        whole = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = whole[0, inputs["input_ids"].shape[1] :].tolist()
        ends = self.model.generation_config.eos_token_id
        stops = [place for place, token in enumerate(new) if token in ([ends] if isinstance(ends, int) else ends)]
        return new[: stops[0]] if stops else new


def load(folder: Path) -> Reference:
    """The checkpoint in `folder` in float32."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    described = folder / "processor_config.json"
    if not described.exists():
        model = hf.AutoModelForCausalLM.from_pretrained(folder, **PLAIN)
        return Reference(model=model.eval(), tokenizer=tokenizer, make=_text_alone(tokenizer))
    settings = json.loads(described.read_text())
    name = settings.pop("processor_class")
    settings.pop("image_processor", None)
    pictures = hf.AutoImageProcessor.from_pretrained(folder)
    if name == "PixtralProcessor":
        make = _pixtral(tokenizer, pictures, settings)
    else:
        processor = _without_video(getattr(hf, name), tokenizer, pictures, settings)
        make = _paligemma(processor) if name == "PaliGemmaProcessor" else _chatting(processor)
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, **PLAIN)
    return Reference(model=model.eval(), tokenizer=tokenizer, make=make)


def _without_video(kind: Any, tokenizer: Any, pictures: Any, settings: Mapping[str, Any]) -> Any:
    """A processor of the class `kind` without a video part."""

    class PicturesAlone(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    parts = {"image_processor": pictures, "tokenizer": tokenizer, "video_processor": None}
    chat = settings.get("chat_template", tokenizer.chat_template)
    return PicturesAlone(**{name: parts[name] for name in kind.get_attributes()}, **settings | {"chat_template": chat})


def _chatting(processor: Any) -> Maker:
    """By the processor's chat template. (SmolVLM's own method asks for the video part and then calls this one.)"""

    def make(messages: Sequence[Message], *, answering: bool) -> Mapping[str, Tensor]:
        return hf.ProcessorMixin.apply_chat_template(
            processor,
            list(messages),
            add_generation_prompt=answering,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    return make


def _text_alone(tokenizer: Any) -> Maker:
    def make(messages: Sequence[Message], *, answering: bool) -> Mapping[str, Tensor]:
        plain = [{**message, "content": "".join(part["text"] for part in message["content"])} for message in messages]
        return tokenizer.apply_chat_template(
            plain, add_generation_prompt=answering, tokenize=True, return_dict=True, return_tensors="pt"
        )

    return make


def _paligemma(processor: Any) -> Maker:
    """PaliGemma has no chat: pictures, a start token, one question and a line break; then the answer.

    The processor refuses a question without a picture, so its ids are written out here.
    """

    def make(messages: Sequence[Message], *, answering: bool) -> Mapping[str, Tensor]:
        question, *answers = messages
        images = [part["image"] for part in question["content"] if part["type"] == "image"]
        text = "".join(part["text"] for part in question["content"] if part["type"] == "text")
        suffix = None if answering else answers[0]["content"][0]["text"]
        if images:
            made = processor(images=images, text="<image>" * len(images) + text, suffix=suffix, return_tensors="pt")
            made.pop("labels")
            return made
        asked = processor.tokenizer(f"<bos>{text}\n", add_special_tokens=False)["input_ids"]
        told = [] if suffix is None else processor.tokenizer(f"{suffix}<eos>", add_special_tokens=False)["input_ids"]
        return {
            "input_ids": torch.tensor([asked + told]),
            "attention_mask": torch.ones(1, len(asked + told), dtype=torch.long),
            "token_type_ids": torch.tensor([[0] * len(asked) + [1] * len(told)]),
        }

    return make


def _pixtral(tokenizer: Any, pictures: Any, settings: Mapping[str, Any]) -> Maker:
    """Mistral 3. Its processor cannot be imported without torchvision, so the few lines that it adds are written out.

    The published template's default system turn, which names the day, is left out, as mistral-common does.
    """
    patch = settings["patch_size"] * settings["spatial_merge_size"]

    def make(messages: Sequence[Message], *, answering: bool) -> Mapping[str, Tensor]:
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=answering, tokenize=False)
        text = re.sub(r"\[SYSTEM_PROMPT\].*\[/SYSTEM_PROMPT\]", "", text)
        images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        tensors: dict[str, Tensor] = {}
        if images:
            tensors = dict(pictures(images, patch_size={"height": patch, "width": patch}, return_tensors="pt"))
            for height, width in tensors["image_sizes"].tolist():
                line = "[IMG~]" * (width // patch) + "[IMG_BREAK]"
                lines = (line * (height // patch)).removesuffix("[IMG_BREAK]") + "[IMG_END]"
                text = text.replace("[IMG]", lines, 1)
        text = text.replace("[IMG~]", "[IMG]")
        return {**tokenizer(text, add_special_tokens=False, return_tensors="pt"), **tensors}

    return make
