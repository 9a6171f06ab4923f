"""The proof that an export computes what the run's own method does, and not what the bare backbone does.

Loaders may ignore an adapter without a word, because its names are not theirs. So what was written is loaded as its
users load it, and its predictions on a few built-in rows are compared with the method's and with the backbone's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from components.core.errors import ExportError
from components.data.batch import Batch, collate
from components.data.rows import IMAGE_TOKEN, Row, Turn
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.source import model_source

# Largest difference of logits, relative to the largest logit. Both sides compute the same sums in another order; in
# bfloat16 every layer rounds to 8 bits, and merged weights do once more.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
EFFECT_SHARE = 0.5  # and relative to what the method changes: a difference as large would hide that it does nothing

QUESTIONS = ("Which colour is the square?", "How many squares are there?", "Name the opposite of left.")
REPLIES = ("red", "2", "right")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Largest differences of logits."""

    error: float  # between the export and the method
    effect: float  # between the method and the backbone


def probe_batch(config: BackboneConfig) -> Batch:
    """Three built-in questions with their answers, two of them with a picture if the backbone takes any."""
    encoder, pictured = build_encoder(config), model_source(config).family_class().takes_pictures()
    rows = [_row(number, pictured=pictured and number < 2) for number in range(len(QUESTIONS))]
    return collate([encoder.training_example(row) for row in rows], pad_id=encoder.pad_id, padding_side="right")


def agreement(found: Tensor, ours: Tensor, base: Tensor, *, dtype: str, what: str) -> Agreement:
    """Compare the logits of what was written (`what`, for messages) with the method's and the backbone's.

    Raises `ExportError` where the method changes nothing, where the export does not, and where the two differ.
    """
    effect, error = (float((ours - other).abs().max()) for other in (base, found))
    if effect == 0.0:
        raise ExportError("the run's method changes no prediction of the backbone, so there is nothing to export.")
    if float((found - base).abs().max()) == 0.0:
        raise ExportError(f"{what} changes no prediction of the backbone: it is ignored when it is loaded.")
    largest = max(float(ours.abs().max()), float(base.abs().max()))
    limit = min(TOLERANCE[dtype] * largest, EFFECT_SHARE * effect)
    if not error <= limit:
        raise ExportError(
            f"the predictions of {what} differ from the run's own by up to {error:.3g} (allowed {limit:.3g}; the "
            f"method changes the backbone's by {effect:.3g})"
            + ("; its increments are lost in bfloat16, export peft or a bundle." if dtype == "bfloat16" else ".")
        )
    return Agreement(error=error, effect=effect)


def _row(number: int, *, pictured: bool) -> Row:
    size = (64 + 16 * number, 64)
    image: bytes | None = None
    if pictured:
        picture = Image.new("RGB", size, (245, 245, 235))
        for square in range(number + 1):
            ImageDraw.Draw(picture).rectangle((8 + 28 * square, 20, 28 + 28 * square, 40), fill=(200, 40, 40))
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
        image = stream.getvalue()
    text = f"{IMAGE_TOKEN}\n{QUESTIONS[number]}" if pictured else QUESTIONS[number]
    return Row(
        sample_id=f"probe-{number}",
        task="probe",
        split="test",
        turns=(Turn(speaker="human", text=text), Turn(speaker="gpt", text=REPLIES[number])),
        answers=(REPLIES[number],),
        metric="exact",
        source="built in",
        image=image,
        width=size[0] if pictured else None,
        height=size[1] if pictured else None,
    )
