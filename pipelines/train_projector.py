"""Train the projector of the `smol` backbone, which joins its vision tower to its language model.

    littoral train-projector --vision-layer block4

Writes components/models/embedded/assets/projector-<layer>.safetensors. That file ships with Littoral, so you need this
only to train it again. Run it on an otherwise idle machine (see `--threads`).
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: from here on Ctrl-C is one sentence
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout's code, whatever else is installed
    from pipelines.littoral import run

    sys.exit(run("train_projector"))

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryFile

import torch

from components.core.errors import ConfigError
from components.core.machine import cache_dir
from components.core.options import Count, check_options
from components.core.visible import print_text
from components.data.embedded.mini_coast.generate import MINI_COAST
from components.data.rows import Split, open_split, verify_split
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig, VisionLayer
from components.models.embedded import projection
from components.models.embedded.smol import projector_path, smol_directory
from components.models.encoding import build_encoder
from pipelines.littoral import read_options


@dataclass(frozen=True, kw_only=True)
class ProjectorRun:
    """Which projector to train, on which captions, and where to write it."""

    vision_layer: VisionLayer = "block4"
    """Where the tower is tapped: the projector is trained for it."""
    size: str = "mini"
    """Size of the generated `align` split: nano, mini or small."""
    data: Path | None = None
    """A prepared split with captions instead of the generated one."""
    output: Path | None = None
    """Where to write the projector; default: the file that ships with Littoral."""
    threads: Count = 2
    """torch threads; the result depends on their number in the last digits."""
    stage: projection.StageOneConfig = field(default_factory=projection.StageOneConfig)
    debug: bool = False
    """A traceback instead of one sentence."""

    def __post_init__(self) -> None:
        check_options(self, "train_projector")


def main(arguments: Sequence[str]) -> int:
    """Encode the captions, train word vectors and then captions, and write the projector after every held-out check."""
    run = read_options(ProjectorRun, arguments, name="train_projector", description=__doc__)
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.stage.seed)
    start = time.monotonic()
    path = run.output or projector_path(run.vision_layer)
    _require_writable(path)  # before the minutes of work

    split = _captions(run)
    folder = smol_directory(run.vision_layer, untrained_projector_seed=run.stage.seed)
    config = BackboneConfig(name=str(folder))
    backbone, encoder = load_backbone(config), build_encoder(config)

    rows = list(split.rows())
    Random(run.stage.seed).shuffle(rows)
    captions = projection.encode_captions(rows, backbone, encoder, vision_layer=run.vision_layer)
    held_out, training = captions.examples[: run.stage.held_out], captions.examples[run.stage.held_out :]
    _say(start, f"{len(training)} captions to learn from, {len(held_out)} held out; tower features are ready")

    def check(phase: str, update: int, loss: float | None) -> None:
        """Print held-out figures and write the projector as it is now."""
        result = projection.held_out_loss(backbone, held_out, pad_id=encoder.pad_id)
        train = "" if loss is None else f"training loss {loss:.3f}, "
        figures = f"held-out {result.loss:.3f}, with swapped pictures {result.swapped_loss:.3f} (gap {result.gap:.3f})"
        _say(start, f"{phase} {update}: {train}{figures}")
        metadata = {
            "vision_layer": run.vision_layer,
            "data_digest": split.digest,
            "data_rows": str(split.num_rows),
            "stage": json.dumps(asdict(run.stage), sort_keys=True),
            "reached": f"{phase} {update}",
            "held_out_loss": f"{result.loss:.4f}",
            "held_out_loss_swapped_pictures": f"{result.swapped_loss:.4f}",
        }
        projection.save_projector(path, backbone, captions, metadata=metadata)

    check("untrained", 0, None)
    projection.learn_words(
        backbone, training, run.stage, lambda update, loss: _say(start, f"words {update}: training loss {loss:.3f}")
    )
    check("words", run.stage.word_updates, None)
    projection.learn_captions(
        backbone,
        training,
        run.stage,
        pad_id=encoder.pad_id,
        report=lambda update, loss: check("captions", update, loss),
    )
    _say(start, f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    return 0


def _require_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written ({error.strerror}); give another file.") from error
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; give a file.")


def _captions(run: ProjectorRun) -> Split:
    """The given split, verified, or the generated one (kept in the cache)."""
    if run.data is not None:
        split = open_split(run.data)
        verify_split(split)
        return split
    return MINI_COAST.generate_split(
        "align", "align", size=run.size, seed=run.stage.seed, out_dir=cache_dir() / "align" / run.size
    )


def _say(start: float, text: str) -> None:
    print_text(f"[{time.monotonic() - start:6.0f} s] {text}", flush=True)
