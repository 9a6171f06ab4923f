"""MedicalQA in miniature (PathVQA style): modality, plane, body part, tissue and stain of real medical pictures."""

from __future__ import annotations

from functools import cache
from random import Random

from PIL import Image, ImageEnhance

from components.data.embedded.drawing import SIZE
from components.data.embedded.facts import Partition, Sample, ask
from components.data.embedded.mini_coast.medical_sources import Scan, scans
from components.data.embedded.mini_coast.prompts import MEDICAL, lines

_WEIGHTS = {"plane": 26, "modality": 20, "part": 12, "map": 14, "half": 12, "gray_rich": 8, "brown": 8}
_QUESTIONS = {
    "plane": "In which plane is this brain cut: axial, coronal or sagittal?",
    "modality": "Which imaging modality produced this scan?",
    "part": "Which body part was examined in this scan?",
    "map": "Is this brain slice a T1 scan, gray matter map or white matter map?",
    "gray_rich": "Is most of this brain slice (over 60%) gray matter?",
    "brown": "Is this tissue patch rich in brown stain?",
}
_HALVES = {
    "axial": "Is this axial slice from the upper or lower brain?",
    "coronal": "Is this coronal slice from the front or back of the brain?",
}


@cache
def _by_answer(partition: Partition) -> dict[str, dict[str, list[Scan]]]:
    """Question kind -> answer -> scans: drawing the answer first keeps every kind balanced."""
    groups: dict[str, dict[str, list[Scan]]] = {kind: {} for kind in _WEIGHTS}
    for scan in scans(partition):
        for kind in _WEIGHTS:
            value = getattr(scan, kind)
            if value is None or (kind in ("gray_rich", "half") and scan.map != "T1 scan"):
                continue
            answer = ("yes" if value else "no") if isinstance(value, bool) else value
            groups[kind].setdefault(answer, []).append(scan)
    return groups


def _even(rng: Random, found: list[Scan]) -> Scan:
    """A scan whose source picture was drawn first, so that the brain's many slices do not crowd out the rest."""
    pictures: dict[str, list[Scan]] = {}
    for scan in found:
        pictures.setdefault(scan.source.rsplit("/", 1)[0], []).append(scan)
    return rng.choice(pictures[rng.choice(sorted(pictures))])


def draw_scan(rng: Random, scan: Scan) -> Image.Image:
    """The scan fitted into the square on black, with a small turn, zoom and change of brightness."""
    image = Image.fromarray(scan.pixels).convert("RGB")
    scale = SIZE * rng.uniform(0.88, 1.08) / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    image = image.rotate(rng.uniform(-8, 8), resample=Image.Resampling.BILINEAR)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))
    square = Image.new("RGB", (SIZE, SIZE))
    square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return square


def pick_scan(rng: Random, partition: Partition, kind: str) -> tuple[Scan, str]:
    """A scan for a question of `kind` (a key of `_WEIGHTS`), and its answer; every answer is equally likely."""
    groups = _by_answer(partition)[kind]
    answer = rng.choice(sorted(groups))
    return _even(rng, groups[answer]), answer


def make_sample(rng: Random, partition: Partition) -> Sample:
    """One medical question; metric "yes_no" or "exact"."""
    kind = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
    scan, answer = pick_scan(rng, partition, kind)
    question = _HALVES[scan.plane or ""] if kind == "half" else _QUESTIONS[kind]
    metric = "yes_no" if answer in ("yes", "no") else "exact"
    return ask(draw_scan(rng, scan), lines(question, MEDICAL), answer, metric=metric, source=scan.source)


def describe(scan: Scan) -> str:
    """A caption of at most 25 tokens."""
    if scan.plane:
        half = f", {scan.half} half" if scan.half else ""
        return f"A brain MRI in {scan.plane} plane{half}: {scan.map}."
    of_part = f" of the {scan.part}" if scan.part else ""
    stain = "" if scan.brown is None else (", rich in brown stain" if scan.brown else ", little brown stain")
    return f"Medical picture: {scan.modality}{of_part}{stain}."


def make_caption(rng: Random, partition: Partition) -> tuple[Image.Image, str, str]:
    """A medical picture, its caption and its source; every modality is equally likely, brains half of all."""
    groups = _by_answer(partition)["plane" if rng.random() < 0.5 else "modality"]
    scan = _even(rng, groups[rng.choice(sorted(groups))])
    return draw_scan(rng, scan), describe(scan), scan.source
