"""VizWiz in miniature: one emoji in a dark, blurred or badly framed picture; beyond a limit it is Unanswerable.

The damage is a known number, so whether a picture can be answered is a fact and not an opinion. Both sides keep a
distance from the limit: pictures in between would be doubtful.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from components.data.embedded.drawing import SIZE, canvas
from components.data.embedded.facts import Partition, Sample, ask
from components.data.embedded.mini_coast.icon import Icon, glyph, paste, pick_distinct
from components.data.embedded.mini_coast.prompts import SHORT, lines
from components.data.embedded.mini_coin.prompts import VISIBLE

UNANSWERABLE = "Unanswerable"
SHARE_UNANSWERABLE = 0.27
_NOISE = 3.0  # standard deviation of the sensor noise, in grey levels


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What is left of a picture, in 0..1: at least `clear` in an answerable one, at most `lost` in the others."""

    clear: float
    lost: float


# dark: share of the brightness; blur: 1 / (1 + radius in pixels); crop: share of the emoji's box inside the picture.
LIMITS: dict[str, Limit] = {
    "dark": Limit(clear=0.3, lost=0.008),
    "blur": Limit(clear=1 / 6, lost=1 / 31),
    "crop": Limit(clear=0.7, lost=0.03),
}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What happened to the picture and how much of it is left."""

    kind: str
    left: float

    @property
    def unanswerable(self) -> bool:
        limit = LIMITS[self.kind]
        return self.left < (limit.clear + limit.lost) / 2


def make_damage(rng: Random, kinds: tuple[str, ...]) -> Damage:
    """One of the `kinds` of damage, beyond its limit in `SHARE_UNANSWERABLE` of the draws."""
    kind = rng.choice(kinds)
    limit = LIMITS[kind]
    lost = rng.random() < SHARE_UNANSWERABLE
    return Damage(kind=kind, left=rng.uniform(limit.lost / 3, limit.lost) if lost else rng.uniform(limit.clear, 1.0))


def draw_damaged(rng: Random, icon: Icon, damage: Damage) -> Image.Image:
    """The emoji on a plain ground, then the damage; a dark picture is noisy, as from a camera."""
    ground = rng.randint(190, 245)
    image, _ = canvas((ground, ground, rng.randint(170, 245)))
    side = rng.uniform(130, 170)
    center = [112 + rng.uniform(-15, 15), 112 + rng.uniform(-15, 15)]
    if damage.kind == "crop":
        # Pushed over one edge until only `left` of its length is inside.
        axis, edge = rng.randrange(2), rng.randrange(2)
        shape = glyph(icon.char).size
        length = side * shape[axis] / max(shape)
        inside = damage.left * length
        center[axis] = inside - length / 2 if edge == 0 else SIZE - inside + length / 2
    paste(image, icon, (center[0], center[1]), side)
    if damage.kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(1 / damage.left - 1))
    if damage.kind != "dark":
        return image
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, _NOISE, (SIZE, SIZE, 1))
    pixels = np.asarray(image, dtype=np.float64) * damage.left + noise
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One question about a picture that may show too little; metric "exact"."""
    if rng.random() < 0.3:
        # A colour survives any blur, so blur never makes that question unanswerable.
        icon = pick_distinct(rng, partition, 1, "color")[0]
        question, answer, kinds = "What color is this?", icon.color, ("dark", "crop")
    else:
        icon = pick_distinct(rng, partition, 1, "kind")[0]
        question, answer, kinds = "What kind of thing is this?", icon.kind, ("dark", "blur", "crop")
    assert answer is not None
    damage = make_damage(rng, kinds)
    image = draw_damaged(rng, icon, damage)
    answer = UNANSWERABLE if damage.unanswerable else answer
    return ask(image, lines(question, VISIBLE, SHORT), answer, metric="exact", source=icon.source)
