"""Rows become tensors: conversation and picture in, token ids, answer labels and pixels out.

Runs inside Ray Data workers: an `Encoder` holds only its configuration and reads tokenizer and image processor (never
weights) at first use. A whole conversation is tokenised once and labels are placed by character spans, so ids equal
those of the plain string and no token is ever split differently for the loss.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, LlavaProcessor, PreTrainedTokenizerFast

from components.data.batch import IGNORE, Example
from components.data.pictures import open_image
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.errors import ConfigError, DataError
from components.models import efficientnet as _efficientnet  # noqa: F401  (registers the tower with AutoConfig)
from components.models.config import BackboneConfig
from components.models.pocket import pocket_processor
from components.models.source import model_source
from components.models.templates import Template, template_for


class Encoder:
    """Encodes rows for one backbone. Cheap to build and to send: it pickles as its configuration."""

    def __init__(self, config: BackboneConfig) -> None:
        self.config = config

    def __reduce__(self) -> tuple[type[Encoder], tuple[BackboneConfig]]:
        return Encoder, (self.config,)

    @property
    def pad_id(self) -> int:
        tokenizer = self._parts.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        assert isinstance(pad, int)
        return pad

    @property
    def image_tokens(self) -> int:
        """V: how many tokens one picture takes."""
        return self._parts.image_tokens

    def decode(self, ids: list[int] | Tensor) -> str:
        """Text of generated ids, without special tokens and outer blanks."""
        return str(self._parts.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def training_example(self, row: Row, *, features: Tensor | None = None) -> Example:
        """The whole conversation; labels on every answer including its end-of-turn token, IGNORE elsewhere.

        With `features` [V, C] (cached tower output) the picture is not decoded. Raises `DataError` naming the row
        when turns do not alternate, an answer is empty, the picture is broken or the row exceeds `max_length`.
        """
        _check_turns(row, row.turns)
        if row.turns[-1].speaker != "gpt":
            raise DataError(f"row {row.sample_id}: the last turn is a question; a training row ends with an answer.")
        return self._example(row, row.turns, features, answering=False)

    def prompt_example(self, row: Row, *, features: Tensor | None = None) -> Example:
        """The conversation up to its last answer, which is left for the model to give; no labels."""
        turns = row.turns[:-1] if row.turns and row.turns[-1].speaker == "gpt" else row.turns
        _check_turns(row, turns)
        return self._example(row, turns, features, answering=True)

    def text(self, row: Row, *, answering: bool) -> str:
        """The templated string of a row, with our image placeholder (for people and tests)."""
        turns = row.turns[:-1] if answering and row.turns[-1].speaker == "gpt" else row.turns
        return self._parts.template(
            [Turn(speaker=turn.speaker, text=turn.text.strip()) for turn in turns], answering
        ).text

    def pixels(self, row: Row) -> Tensor:
        """Pixels [3, H, W] float32 of the row's picture, as the tower takes them."""
        assert row.image is not None
        image = open_image(row.image, sample_id=row.sample_id)
        parts = self._parts
        if self.config.pad_to_square:
            image = _square(image, parts.mean_colour)
        pixels = parts.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return cast(Tensor, pixels).float()

    def _example(self, row: Row, turns: tuple[Turn, ...], features: Tensor | None, *, answering: bool) -> Example:
        parts = self._parts
        rendered = parts.template(self._with_placeholder(row, turns), answering)
        encoding = parts.tokenizer(rendered.text, return_offsets_mapping=True)
        ids, offsets = cast(list[int], encoding["input_ids"]), cast(list[tuple[int, int]], encoding["offset_mapping"])
        expected = 0 if row.image is None else 1
        if ids.count(parts.image_token_id) != expected:
            raise DataError(
                f"row {row.sample_id}: its text holds {ids.count(parts.image_token_id)} picture placeholders for "
                f"{expected} pictures; write {IMAGE_TOKEN} once, in the first question of a row that has a picture."
            )
        labels = [IGNORE] * len(ids)
        if not answering:
            _label_spans(row, ids, offsets, rendered.spans, labels)
        if expected:
            place = ids.index(parts.image_token_id)
            ids = ids[:place] + [parts.image_token_id] * parts.image_tokens + ids[place + 1 :]
            labels = labels[:place] + [IGNORE] * parts.image_tokens + labels[place + 1 :]
        if len(ids) > self.config.max_length:
            raise DataError(
                f"row {row.sample_id} takes {len(ids)} tokens, more than backbone.max_length = "
                f"{self.config.max_length}; shorten it or raise the limit."
            )
        return Example(
            sample_id=row.sample_id,
            instruction=row.instruction,
            input_ids=torch.tensor(ids, dtype=torch.long),
            labels=torch.tensor(labels, dtype=torch.long),
            pixel_values=self.pixels(row) if expected and features is None else None,
            features=features if expected else None,
        )

    def _with_placeholder(self, row: Row, turns: tuple[Turn, ...]) -> list[Turn]:
        """Stripped turns in which our placeholder is the processor's own image token."""
        if row.image is not None and sum(turn.text.count(IMAGE_TOKEN) for turn in turns) != 1:
            raise DataError(
                f"row {row.sample_id} has a picture but not exactly one {IMAGE_TOKEN}; put it first in the question."
            )
        token = self._parts.processor.image_token if row.image is not None else IMAGE_TOKEN
        return [Turn(speaker=turn.speaker, text=turn.text.strip().replace(IMAGE_TOKEN, token)) for turn in turns]

    @cached_property
    def _parts(self) -> _Parts:
        return _load_parts(self.config)


class _Parts(NamedTuple):
    processor: LlavaProcessor
    tokenizer: PreTrainedTokenizerFast
    template: Template
    image_token_id: int
    image_tokens: int
    mean_colour: tuple[int, int, int]


def build_encoder(config: BackboneConfig) -> Encoder:
    """The encoder of `config`'s backbone; reads tokenizer and image processor now, so mistakes show at once."""
    encoder = Encoder(config)
    assert encoder.image_tokens > 0
    return encoder


def _load_parts(config: BackboneConfig) -> _Parts:
    if config.name == "pocket":
        processor = pocket_processor()
    else:
        source = model_source(config)
        try:
            processor = AutoProcessor.from_pretrained(source)
            model_config = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the processor of backbone {config.name!r} cannot be loaded: {error}") from error
        if not isinstance(processor, LlavaProcessor):
            raise ConfigError(
                f"backbone {config.name!r} has a {type(processor).__name__}; Littoral needs a LlavaProcessor."
            )
        if processor.patch_size is None:  # early conversions of LLaVA-1.5 left these to the model's configuration
            processor.patch_size = model_config.vision_config.patch_size
            processor.vision_feature_select_strategy = model_config.vision_feature_select_strategy
            processor.num_additional_image_tokens = 1
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"backbone {config.name!r} has no fast tokenizer (tokenizer.json); labels need its offsets.")
    mean = getattr(processor.image_processor, "image_mean", None) or [0.5, 0.5, 0.5]
    blank = Image.new("RGB", (64, 64))
    probe = processor(images=blank, text=processor.image_token)["input_ids"]
    probe = probe[0] if isinstance(probe[0], list) else probe
    return _Parts(
        processor=processor,
        tokenizer=tokenizer,
        template=template_for(config.template, processor),
        image_token_id=processor.image_token_id,
        image_tokens=sum(int(token) == processor.image_token_id for token in probe),
        mean_colour=(int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255)),
    )


def _check_turns(row: Row, turns: tuple[Turn, ...]) -> None:
    if not turns:
        raise DataError(f"row {row.sample_id} holds no question.")
    for index, turn in enumerate(turns):
        speaker = ("human", "gpt")[index % 2]
        if turn.speaker != speaker:
            raise DataError(
                f"row {row.sample_id}: turn {index + 1} is by {turn.speaker!r}; turns alternate human, gpt, human, gpt."
            )
        if not turn.text.strip():
            raise DataError(f"row {row.sample_id}: turn {index + 1} is empty; remove the row or fill it.")


def _label_spans(
    row: Row, ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]], labels: list[int]
) -> None:
    """Copy to `labels` the ids whose characters overlap an answer span; positions decide, so pad may equal eos."""
    for start, end in spans:
        inside = [index for index, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
        if not inside:
            raise DataError(f"row {row.sample_id}: an answer has no token of its own; remove the row or reword it.")
        for index in inside:
            labels[index] = ids[index]


def _square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centre the picture on a square of the processor's mean colour, as LLaVA-1.5 does."""
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
