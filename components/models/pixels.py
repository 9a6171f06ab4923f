"""Pixels in one byte each while they travel between processes, and their exact numbers where a tower takes them.

An image processor maps the 256 levels of each channel to as many numbers. So a picture is its levels and a table of
those numbers, a quarter of its bytes in float32. Whether that is so is looked at for every picture, to the bit: one
that was padded, or resized after it was normalised, has other numbers, too, and travels as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

PIXELS, LEVELS, TABLE = "pixel_values", "pixel_levels", "pixel_table"  # float32; uint8; [3, 256] float32


class Scale(NamedTuple):
    """What an image processor's file says of its numbers: (level * factor - mean) / std, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    factor: float


def scale_of(image_processor: object) -> Scale | None:
    """The scale of a processor of transformers; None where it has none or is of another kind."""
    found = (getattr(image_processor, name, None) for name in ("image_mean", "image_std", "rescale_factor"))
    mean, std, factor = found
    if not (isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)) and isinstance(factor, float)):
        return None
    return Scale(tuple(mean), tuple(std), factor) if len(mean) == len(std) == 3 and all(std) and factor else None


def packed(tensors: Mapping[str, Tensor], scale: Scale | None) -> dict[str, Tensor]:
    """A picture's tensors with levels and table in the place of pixels, where these give the same bits."""
    pixels = tensors.get(PIXELS)
    values = None if pixels is None or pixels.dtype != torch.float32 else _by_channel(pixels)
    if scale is None or pixels is None or values is None:
        return dict(tensors)
    mean, std = (torch.tensor(each).view(1, 3, 1) for each in (scale.mean, scale.std))
    levels = ((values * std + mean) / scale.factor).round_().clamp_(0, 255).to(torch.uint8)
    table = torch.zeros(3, 256)
    for channel in range(3):  # whichever pixel of a level comes last: all must be equal, or the comparison fails
        table[channel, levels[:, channel].flatten().long()] = values[:, channel].flatten()
    others = {name: tensor for name, tensor in tensors.items() if name != PIXELS}
    found = {**others, LEVELS: levels.view(pixels.shape), TABLE: table}
    same = torch.equal(unpacked(found)[PIXELS].view(torch.int32), pixels.contiguous().view(torch.int32))
    return found if same else dict(tensors)


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `packed`, on any device; in the dtype that the table has by now."""
    if LEVELS not in tensors:
        return dict(tensors)
    levels, table = tensors[LEVELS], tensors[TABLE]
    by_channel = _by_channel(levels)
    assert by_channel is not None
    places = by_channel.long() + torch.arange(0, 768, 256, device=levels.device).view(1, 3, 1)
    others = {name: tensor for name, tensor in tensors.items() if name not in (LEVELS, TABLE)}
    return {**others, PIXELS: table.flatten()[places].view(levels.shape)}


def _by_channel(pixels: Tensor) -> Tensor | None:
    """[N, 3, M]: pictures or tiles [N, 3, height, width], patches [N, 3 * M] or one picture [3 * M]; None: neither."""
    if pixels.dim() == 4 and pixels.shape[1] == 3:
        return pixels.flatten(2)
    if pixels.dim() in (1, 2) and pixels.shape[-1] % 3 == 0:
        return pixels.reshape(-1, 3, pixels.shape[-1] // 3)
    return None
