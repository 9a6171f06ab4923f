"""The stage-1 split: short dense captions over every kind of picture, to train the projector as LLaVA does."""

from __future__ import annotations

from random import Random

from components.data.embedded.facts import Partition, Sample, ask
from components.data.embedded.mini_coast import chart, document, icon, medical

_PROMPTS = (
    "Describe the picture.",
    "What does the picture show?",
    "Give a short caption for the image.",
    "Describe this image briefly.",
)
# Shares follow how much of each kind must be read off the picture; documents come with OCR tokens later.
_MAKERS = ((chart.make_caption, 38), (icon.make_caption, 30), (document.make_caption, 12), (medical.make_caption, 20))


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One picture with its caption as the answer; metric "exact" is a placeholder, it is never scored."""
    make = rng.choices([maker for maker, _ in _MAKERS], weights=[weight for _, weight in _MAKERS])[0]
    image, caption, source = make(rng, partition)
    return ask(image, rng.choice(_PROMPTS), caption, metric="exact", source=source)
