"""What Littoral must know about one type of model: how pictures become tokens, and how its language model is called.

One file in this package describes one `model_type` of transformers. Everything else in Littoral asks the `Family` and
never the type. A family has two sides: the first runs where rows are encoded and reads no weights, the second runs
where the model is.

Shape letters: B batch, P prefix, T tokens, N pictures, V tokens of one picture, C channels of its features, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor, nn

from components.core.errors import ConfigError, DataError
from components.data.batch import Batch, Picture

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from components.models.config import BackboneConfig
    from components.models.source import ProcessorFiles

FEATURES = "features"  # the name of cached features among a picture's tensors


class Layout(NamedTuple):
    """What stands in a prompt for one picture; it depends on the picture's size alone."""

    text: str
    """Takes the placeholder's place before the prompt is tokenised."""
    runs: tuple[int, ...]
    """For each image token in `text`, in order, how many times it is repeated: V in all."""


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """What is known when the language model is called."""

    batch: Batch
    embeddings: Tensor  # [B, P + T, D], pictures in place
    mask: Tensor  # [B, P + T] int64, 0 at padding
    prefix: int  # P
    image_mask: Tensor  # [B, T] bool: the positions of pictures' tokens
    extra: Mapping[str, Tensor]  # what `Family.embed` gave beside the embeddings

    @cached_property
    def positions(self) -> Tensor:
        """Position ids [B, P + T] that start at 0 with each row's first real token, whatever the padding side."""
        return (self.mask.cumsum(dim=-1) - 1).clamp(min=0)


class Family:
    """Base of all families. Subclasses say what differs; the defaults suit a model with a tower and a projector."""

    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    """The class of transformers that loads the model."""
    language_model: ClassVar[str] = "model.language_model"
    """Name of the decoder in the model; methods put their adapters below it."""
    head: ClassVar[str] = "lm_head"
    towers: ClassVar[tuple[str, ...]] = ("model.vision_tower",)
    """Names of the modules that encode pictures; always frozen and in evaluation mode."""
    projector: ClassVar[str | None] = None
    """Name of a module that maps cached features to the language model's width, so that methods can train it; None: the
    features are its output already."""
    max_pictures: ClassVar[int | None] = None
    """Most pictures that a row may have; None: any number."""
    max_questions: ClassVar[int | None] = None
    """Most questions that a row may have; None: any number."""
    kept: ClassVar[tuple[str, ...]] = ()
    """Tensors of a picture that are needed even where its features are cached."""
    template: ClassVar[str | None] = None
    """One of Littoral's conversation templates that the family needs; None: the model's own, or its tokenizer's."""

    def __init__(self, config: PreTrainedConfig, files: ProcessorFiles, options: BackboneConfig) -> None:
        self.config: Any = config  # the library does not type its fields
        self.files = files
        self.options = options
        self.layout = lru_cache(maxsize=4096)(self._layout)

    # Where rows are encoded.

    @classmethod
    def takes_pictures(cls) -> bool:
        """Whether rows may have pictures at all."""
        return cls.max_pictures != 0

    @property
    def placeholder(self) -> str | None:
        """What a template writes for a picture; None: the model takes no pictures."""
        return cast(str, self.files.tokenizer.convert_ids_to_tokens(self.image_token_id))

    @property
    def image_token_id(self) -> int:
        """The token whose embedding a picture replaces; -1: there is none."""
        return cast(int, self.config.image_token_id)

    def picture(self, image: Image.Image) -> tuple[Layout, dict[str, Tensor]]:
        """A picture's layout, and its tensors under the names of the model's forward.

        Tensors of several pictures are joined along their first dimension, so one of a fixed size has a leading 1.
        """
        raise NotImplementedError

    def _layout(self, width: int, height: int) -> Layout:
        """The layout of a picture of this size, found on a blank one; `layout` remembers it."""
        return self.picture(Image.new("RGB", (width, height)))[0]

    def pixels(self, image: Image.Image, **options: object) -> dict[str, Tensor]:
        """The tensors that the model's own image processor makes of a picture."""
        return {name: value for name, value in self.processed(image, **options).items() if isinstance(value, Tensor)}

    def processed(self, image: Image.Image, **options: object) -> Mapping[str, Any]:
        """All that the model's own image processor makes of a picture."""
        processor: Any = self.files.image_processor
        try:
            return processor(images=image, return_tensors="pt", **options)
        except ValueError as error:  # of Pillow or the library: a shape that the processor cannot take
            raise DataError(
                f"the image processor refused a picture of {image.width} x {image.height}: {error}"
            ) from error

    # Where the model is.

    @property
    def picture_width(self) -> int:
        """C: numbers per token of `features`."""
        return cast(int, self.config.get_text_config().hidden_size)

    def features(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """The frozen encoder's features of N pictures [V, C] each, from their joined tensors."""
        return cast(Any, model).get_image_features(**tensors, return_dict=True).pooler_output

    def embed(self, model: PreTrainedModel, features: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings [sum of V, D] of pictures with these features, and what the call needs beside them."""
        first = next(model.parameters())  # asking a module for its weight would gather it under ZeRO-3
        none = torch.zeros(0, self.picture_width, dtype=first.dtype, device=first.device)
        return torch.cat([none, *features]), {}

    def call(self, model: PreTrainedModel, inputs: ModelInputs) -> dict[str, Any]:
        """Arguments of the language model beside embeddings and cache."""
        return {"attention_mask": inputs.mask, "position_ids": inputs.positions}

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The output layer [..., D] -> [..., vocabulary]."""
        return model.get_submodule(self.head)(hidden)


def joined(pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """The tensors of several pictures, joined along their first dimension."""
    return {name: torch.cat([each.tensors[name] for each in pictures]) for name in pictures[0].tensors}


def submodule(model: nn.Module, name: str, *, of: str) -> nn.Module:
    """The module called `name`; raises `ConfigError` where the checkpoint is of another shape than its type says."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"{of} is a {type(model).__name__} without {name}; give a complete model of a supported type."
        ) from error
