"""A LLaVA-1.5 of random weights, made on the device, and rows for it that go through Littoral's own encoder."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from proof_scale import Scale, float32_products
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedModel,
)

from components.data.batch import Batch, collate
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.methods import method_config
from components.methods.base import Method, TaskInfo
from components.models.backbone import Backbone
from components.models.config import BackboneConfig
from components.models.embedded.pocket import pocket_processor
from components.models.encoding import Encoder, build_encoder
from components.training.engine import Engine, TorchEngine, mean_over_workers
from components.training.optimizer import OptimizerConfig
from components.training.precision import set_float32_products
from components.training.step import take_step

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
# Instructions as unlike as tasks get: what a method keeps for each task is then as much as it can be.
ASKED = ("Which bar is the highest?", "Read the date field.", "Name the organ shown.", "Choose an icon.")


def write_architecture(folder: Path, scale: Scale) -> LlavaConfig:
    """Write configuration, tokenizer and image processor to `folder`, no weights. The tokenizer is pocket's."""
    tokenizer = pocket_processor().tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = LlamaConfig(
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        **scale.text,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**scale.vision),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    side = scale.vision["image_size"]
    config.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tokenizer,
        patch_size=scale.vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return config


@dataclass
class RandomLlava:
    """The frozen model in bfloat16, as transformers builds it; `folder` holds its configuration and processor."""

    scale: Scale
    folder: Path

    def __post_init__(self) -> None:
        config = write_architecture(self.folder, self.scale)
        torch.manual_seed(0)
        with torch.device(self.scale.device):  # drawn there: normal with standard deviation 0.02, as transformers does
            self.model: PreTrainedModel = AutoModelForImageTextToText.from_config(
                config, dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        self.model.requires_grad_(False).eval()
        self.encoder: Encoder = build_encoder(self.config())
        self._modules: dict[str, nn.Module] = dict(self.model.named_modules())

    def config(self, **options: object) -> BackboneConfig:
        return BackboneConfig(name=str(self.folder), dtype="bfloat16", **options)  # type: ignore[arg-type]

    @contextmanager
    def bare(self) -> Iterator[PreTrainedModel]:
        """The model for a while; whatever was put into it meanwhile is taken out again."""
        try:
            yield self.model
        finally:
            if self.model.model.language_model.is_gradient_checkpointing:
                self.model.gradient_checkpointing_disable()
            vars(self.model).pop("peft_config", None)
            for path, module in self._modules.items():
                if path and self.model.get_submodule(path) is not module:
                    self.model.set_submodule(path, module)
            own = set(self._modules.values())
            for module in own:
                for name in [name for name, child in module.named_children() if child not in own]:
                    delattr(module, name)
            self.model.requires_grad_(False)

    @contextmanager
    def backbone(self, **options: object) -> Iterator[Backbone]:
        """The model as methods see it, for a while, with float32 products as a run with these options makes them."""
        config, family, end_id = self.config(**options), self.encoder.family, self.encoder.end_id
        with self.bare() as model, float32_products():
            set_float32_products(config, torch.device(self.scale.device))
            yield Backbone(model, family=family, config=config, fingerprint="random", end_id=end_id)

    def flops(self, batch: Batch) -> float:
        """Floating point operations of the frozen matrices for one step on `batch`.

        Two an entry and token forward and two for the gradient of the input; frozen weights need no gradient of their
        own. Of the vision tower and the projector forward only. Attention's own products, adapters and a second forward
        pass are left out, so that a figure means the same for every contestant.
        """
        inner = self.model.model
        pictures = int((batch.input_ids == self.model.config.image_token_id).any(dim=1).sum())
        visual = (self.scale.vision["image_size"] // self.scale.vision["patch_size"]) ** 2
        supervised = int((batch.labels[:, 1:] >= 0).sum())
        return (
            4 * _entries(inner.language_model, self._modules) * batch.input_ids.numel()
            + 4 * self.model.lm_head.weight.numel() * supervised
            + 2
            * (_entries(inner.vision_tower, self._modules) + _entries(inner.multi_modal_projector, self._modules))
            * pictures
            * visual
        )


def _entries(part: nn.Module, own: dict[str, nn.Module]) -> int:
    """Of the weight matrices of a part of the frozen model."""
    frozen = set(own.values())
    return sum(m.weight.numel() for m in part.modules() if isinstance(m, nn.Linear) and m in frozen)


def training_batch(encoder: Encoder, scale: Scale, *, task: int = 0, rows: int | None = None) -> Batch:
    """Rows of `scale.tokens` tokens, a picture each, for one of the tasks; on the CPU, as they come from a reader."""
    examples = [encoder.training_example(row) for row in task_rows(encoder, scale, task, rows or scale.rows)]
    return collate(examples, pad_id=encoder.pad_id, padding_side="right")


def task_rows(encoder: Encoder, scale: Scale, task: int, count: int) -> list[Row]:
    """`count` rows of one task, all of `scale.tokens` tokens: a filler word is repeated until they are."""
    short = len(encoder.training_example(_row(scale, task, 0, filler=0)).input_ids)
    assert short <= scale.tokens, f"a row has at least {short} tokens"
    return [_row(scale, task, number, filler=scale.tokens - short) for number in range(count)]


def _row(scale: Scale, task: int, number: int, *, filler: int) -> Row:
    """A question behind `filler` tokens, and an answer of `scale.answer` tokens with its end; " the" is one token."""
    side = scale.vision["image_size"]
    pixels = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, format="PNG", compress_level=1)
    answer = "the" + " the" * (scale.answer - 2)
    return Row(
        sample_id=f"{task}-{number}",
        task=f"task{task}",
        split="train",
        turns=(
            Turn(speaker="human", text=f"{IMAGE_TOKEN}\n{ASKED[task % len(ASKED)]}{' the' * filler}"),
            Turn(speaker="gpt", text=answer),
        ),
        answers=(answer,),
        metric="exact",
        source="test",
        image=stream.getvalue(),
        width=side,
        height=side,
    )


def at_task(
    model: Backbone,
    name: str,
    scale: Scale,
    encoder: Encoder,
    *,
    depth: int = 1,
    options: dict[str, object] | None = None,
) -> Method:
    """The method at the start of its last of `depth` tasks, after an update of each earlier one."""
    kind = method_config(name)
    config = kind() if scale.published else kind.tiny()
    offline = {"sentence_encoder": "hash"} if hasattr(config, "sentence_encoder") else {}  # needs no weights
    method = type(config)(**{**vars(config), **offline, **(options or {})}).build(seed=0)
    method.attach(model, None)
    model.to(model.device)
    for index in range(depth):
        info = TaskInfo(index=index, name=f"task{index}", instructions=[ASKED[index % len(ASKED)]])
        batch = training_batch(encoder, scale, task=index)
        method.begin_task(model, info)
        model.to(model.device)
        method.calibrate(model, info, iter([batch.to(model.device)]), mean_over_workers)
        if index + 1 < depth:
            engine = TorchEngine(model, OPTIMIZER, rates=method.learning_rates())
            update(engine, model, method, [batch])
            engine.close()
            method.end_task(engine, info, iter([batch.to(model.device)]))
    return method


def update(engine: Engine, model: Backbone, method: Method, batches: Sequence[Batch]) -> Tensor:
    """One update, exactly as a training worker makes it; its loss, which may still be being computed."""
    model.train()
    sums, _ = take_step(engine, model, method, batches, model.device)
    return sums["loss"]
