"""Which precision the frozen weights get where `backbone.dtype` is auto: measured once on this machine.

bfloat16 is taken only where products of a frozen layer, forward and backward, are really quicker in it. What was
measured is kept by processor and torch version. A run's config.json holds what came of it and never auto, so that runs
of different precision are never compared or continued as one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal, cast

import torch
from torch.nn import functional as F

from components.core.errors import ConfigError, DataError
from components.core.files import write_text
from components.core.location import Place
from components.core.machine import cache_dir, cpu_model
from components.core.options import Positive, from_plain
from components.core.reading import read_json
from components.data.rows import Row, Turn
from components.models.config import BackboneConfig

Precision = Literal["float32", "bfloat16"]

QUICKER = 0.8  # of float32's time, at most: what is saved must be worth the rounding
ROWS, WIDTH, INNER, REPEATS = 256, 1024, 2816, 3  # of a product; one second in all on a slow core
FEW_ROWS, HOPELESS = 16, 3.0  # without such instructions it is 20 times as slow: a few rows tell
COMPARED = 1_000_000_000  # weights of a model that is loaded twice to see its error
QUESTIONS = (("What is the capital of France?", "Paris"), ("Name the colour of the sky.", "blue"))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured; seconds of a layer's products forward and backward."""

    processor: str
    torch: str
    float32_s: Positive
    bfloat16_s: Positive

    @property
    def dtype(self) -> Precision:
        return "bfloat16" if self.bfloat16_s <= QUICKER * self.float32_s else "float32"

    def __str__(self) -> str:
        share = self.bfloat16_s / self.float32_s
        return f"on {self.processor} products in bfloat16 take {share:.2f} of float32's time: {self.dtype} is taken"


def with_dtype(config: BackboneConfig, stored: Precision | None, say: Callable[[str], None]) -> BackboneConfig:
    """The options with auto as what it is here. `stored`: what it was where the run or sweep began; else `say` hears
    what was measured, and what bfloat16 costs in exactness.
    """
    if config.dtype != "auto":
        return config
    if stored is not None:
        say(f"backbone.dtype auto stays {stored}, as it was when this began")
        return replace(config, dtype=stored)
    found = probed()
    say(f"backbone.dtype auto: {found}")
    chosen = replace(config, dtype=found.dtype)
    if found.dtype == "bfloat16":
        say(error_of(chosen))
    return chosen


def stored_dtype(path: Place, *names: str) -> Precision | None:
    """The precision in a JSON file of a run or sweep, whose options lie under `names`; None where there is none."""
    try:
        content = json.loads(path.read_bytes())
        for name in (*names, "backbone", "dtype"):
            content = content[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whoever reads the file next says what is wrong with it
    return cast(Precision, content) if content in ("float32", "bfloat16") else None


def probed() -> Probe:
    """What was measured on this machine, now or before."""
    key = [_processor(), torch.backends.cpu.get_cpu_capability(), torch.__version__, torch.get_num_threads()]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache_dir() / "precision" / f"{name}.json"
    try:
        return from_plain(Probe, read_json(path, DataError, ""), path.name)
    except (DataError, ConfigError):  # missing or damaged
        found = measured()
        write_text(path, json.dumps(asdict(found)))
        return found


def measured() -> Probe:
    """First with a few rows, which decide where bfloat16 is many times as slow; else with a step's."""
    few = _turns(FEW_ROWS)
    return few if few.bfloat16_s > HOPELESS * few.float32_s else _turns(ROWS)


def _turns(rows: int) -> Probe:
    """Take turns with both precisions, and keep the quickest of each: what disturbs only makes a turn slower."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs = {dtype: _layer(rows, dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    spent = {dtype: [_seconds(run, device)] for dtype, run in runs.items()}  # the first warms up
    for _ in range(REPEATS):
        for dtype, run in runs.items():
            spent[dtype].append(_seconds(run, device))
    return Probe(
        processor=_processor(),
        torch=torch.__version__,
        float32_s=min(spent[torch.float32][1:]),
        bfloat16_s=min(spent[torch.bfloat16][1:]),
    )


def error_of(config: BackboneConfig) -> str:
    """A sentence on how far the model in bfloat16 is from itself in float32, on fixed rows without pictures."""
    # Here, since a command that only plans waits for no model library.
    from components.data.batch import collate
    from components.models.backbone import load_backbone
    from components.models.encoding import build_encoder
    from components.models.source import model_source

    skeleton = model_source(config).skeleton()
    weights = sum(parameter.numel() for parameter in skeleton.parameters())
    if weights > COMPARED:
        return f"its error is not measured for a model of {weights / 1e9:.1f} billion weights, loaded a second time"
    encoder = build_encoder(config)
    rows = [encoder.training_example(_row(*question)) for question in QUESTIONS]
    batch = collate(rows, pad_id=encoder.pad_id, padding_side="right")
    with torch.inference_mode():
        exact = load_backbone(replace(config, dtype="float32", adapter_compute="auto"))(batch)
        found = load_backbone(config)(batch)
    apart = (found.logits.float() - exact.logits.float()).abs()
    size = float(exact.logits.float().std())
    return (
        f"its error on {len(rows)} fixed rows: logits differ by {float(apart.mean()):.3f} on average and "
        f"{float(apart.max()):.3f} at most (their standard deviation is {size:.2f}), the loss is "
        f"{float(found.loss):.4f} instead of {float(exact.loss):.4f}; do not compare with runs in float32"
    )


def require_no_auto(values: object) -> None:
    """Raise `ConfigError` where a sweep would vary the precision by auto, which is decided once for all its trials."""
    if "auto" in str(values):
        raise ConfigError(
            "a sweep's --space gives backbone.dtype auto, which is decided once for all trials; give float32 and "
            "bfloat16 there, or auto outside the space."
        )


def _layer(count: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """A gated MLP of frozen weights, forward and backward to its input."""
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (
        (torch.randn(*shape, generator=generator) * 0.02).to(device, dtype)
        for shape in ((INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER))
    )
    rows = torch.randn(count, WIDTH, generator=generator).to(device, dtype).requires_grad_()

    def run() -> object:
        made = F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down)
        return torch.autograd.grad(made.sum(), rows)

    return run


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """CPU seconds of this process, whatever else the machine does; on a GPU seconds until it has finished."""
    if device.type == "cpu":
        started = time.process_time()
        run()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _processor() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model()


def _row(question: str, reply: str) -> Row:
    turns = (Turn(speaker="human", text=question), Turn(speaker="gpt", text=reply))
    return Row(
        sample_id=question,
        task="probe",
        split="train",
        turns=turns,
        answers=(reply,),
        metric="exact",
        source="probe",
        image=None,
        width=None,
        height=None,
    )
