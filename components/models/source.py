"""Where a backbone comes from: its configuration, processor and weights, what identifies them and how large they are.

Modules that import transformers are imported where they are needed: planning a run of a directory needs none of them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from components.core.errors import ConfigError
from components.core.files import file_sha256, write_text
from components.core.machine import cache_dir
from components.models.config import BackboneConfig
from components.models.hub import missing_shards, snapshot
from components.models.registry import EMBEDDED, accepted_names

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from components.models.families.base import Family

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
# Fields that say how a directory was written or is to be loaded, not what it is.
VOLATILE_FIELDS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
# Without any of these transformers makes an empty tokenizer, or fails without naming what is missing.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
_IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WRITTEN_WITH_WEIGHTS = ("config.json", "generation_config.json", "README.md")
_NOT_TOKENIZER = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json")


def torch_dtype(config: BackboneConfig) -> torch.dtype:
    """The precision of the frozen weights; raises `ConfigError` for auto, which a command decides before it begins."""
    if config.dtype == "auto":
        raise ConfigError("backbone.dtype auto is decided by coast and sweep alone; give float32 or bfloat16 here.")
    return DTYPES[config.dtype]


@dataclass(frozen=True, kw_only=True)
class ProcessorFiles:
    """What a model directory says about preparing its inputs."""

    tokenizer: PreTrainedTokenizerFast
    image_processor: BaseImageProcessor | None
    """None: the model takes no pictures."""
    chat_template: str | None
    """Jinja."""


class ModelSource:
    """A model directory or a hub id in Hugging Face's layout. Embedded backbones override what differs.

    Every method raises `ConfigError` where the model or a part of it cannot be found. Nothing is loaded before it is
    asked for.
    """

    template: ClassVar[str | None] = None
    """The conversation template that the model expects; None: its own chat template or its tokenizer decides."""

    def __init__(self, config: BackboneConfig) -> None:
        self.config = config

    def folder(self, *, weights: bool) -> Path:
        """Where the files are: the directory, or the hub model's folder in Hugging Face's cache.

        A hub model is downloaded into the cache first where it is not there: its small files, and with `weights` those
        of the weights too.
        """
        name = self.config.name
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ConfigError(f"backbone.name {name!r} is not a directory; give {accepted_names()}.")
        return snapshot(name, weights=weights, otherwise=accepted_names())

    def fetch(self) -> None:
        """Have all files on this machine, weights included and whole; `ConfigError` where they cannot be had."""
        self._weights(self.folder(weights=True))

    def location(self, *, weights: bool = False) -> str:
        """What `from_pretrained` is given."""
        return str(self.folder(weights=weights))

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weight files, independent of dtype.

        Hashing 14 GB takes about a minute, so the result is remembered per file list, sizes and modification times.
        """
        folder = self.folder(weights=True).resolve()
        files = self._weights(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]

        def computed() -> str:
            digest = hashlib.sha256(json.dumps(_stable(config), sort_keys=True).encode())
            for path in files:
                digest.update(path.name.encode() + bytes.fromhex(file_sha256(path)))
            return digest.hexdigest()

        return remembered(json.dumps([str(folder), state, config], sort_keys=True), computed)

    def skeleton(self) -> PreTrainedModel:
        """The model without its weights, on the meta device: shapes only, from the configuration alone."""
        import transformers

        config, loader = self.model_config(), getattr(transformers, self.family_class().auto_class)
        with torch.device("meta"):
            return loader.from_config(config, dtype=torch_dtype(self.config))

    def tokenizer_files(self) -> list[Path]:
        """Files that decide how texts become tokens, beside code and libraries."""
        files = (path for path in sorted(self.folder(weights=False).iterdir()) if path.is_file())
        return [path for path in files if not path.name.endswith(_NOT_TOKENIZER)]

    def model_config(self) -> PreTrainedConfig:
        """The architecture."""
        from transformers import AutoConfig

        _register_tower()
        try:
            return AutoConfig.from_pretrained(self.location())
        except (OSError, ValueError) as error:
            raise self._not_loaded("configuration", error) from error

    def processor_files(self) -> ProcessorFiles:
        """Tokenizer, image processor and chat template.

        They are loaded one by one: the processors of many types want torchvision for videos, which nothing here needs.
        Pictures go through Pillow everywhere, so that they are the same numbers on every machine.
        """
        from transformers import AutoImageProcessor, AutoTokenizer

        location = self.location()
        self._require_one_of("tokenizer", _TOKENIZERS)
        try:
            tokenizer = AutoTokenizer.from_pretrained(location)
        except (OSError, ValueError, ImportError) as error:
            raise self._not_loaded("tokenizer", error) from error
        image_processor = None
        if self.family_class().takes_pictures():
            self._require_one_of("image processor", _IMAGE_PROCESSORS)
            try:
                image_processor = AutoImageProcessor.from_pretrained(location, backend="pil")
            except (OSError, ValueError, ImportError) as error:
                raise self._not_loaded("image processor", error) from error
        return ProcessorFiles(
            tokenizer=tokenizer, image_processor=image_processor, chat_template=self._chat_template(tokenizer)
        )

    def family_class(self) -> type[Family]:
        """What describes this type of model; `ConfigError` names the supported types where it is none of them."""
        from components.models.families import family_class

        return family_class(self.model_type(), backbone=self.config.name)

    def model_type(self) -> str:
        """The `model_type` of config.json, read without a model library, which may not know the type either."""
        try:
            found = json.loads((self.folder(weights=False) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._not_loaded("configuration", error) from error
        if not isinstance(found, dict) or "model_type" not in found:
            raise self._not_loaded("configuration", ValueError("its config.json names no model_type"))
        return str(found["model_type"])

    def family(self) -> Family:
        """The family of this backbone, with its configuration and processor files."""
        family = self.family_class()(self.model_config(), self.processor_files(), self.config)
        if family.takes_pictures() and family.placeholder is None:
            raise ConfigError(
                f"backbone {self.config.name!r} marks pictures with token {family.image_token_id}, which its tokenizer "
                "does not have; give a directory whose files belong together."
            )
        return family

    def save_processor(self, folder: Path) -> None:
        """Write into `folder` what belongs beside a model's weights: the files of its processor, as they are."""
        for path in sorted(self.folder(weights=False).iterdir()):
            if path.is_file() and not path.name.endswith(_NOT_TOKENIZER) and path.name not in _WRITTEN_WITH_WEIGHTS:
                shutil.copyfile(path, folder / path.name)

    def licence(self) -> str | None:
        """The licence that the model's own card names; None: it names none."""
        card = self.folder(weights=False) / "README.md"
        head = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if card.is_file() else []
        found = re.search(r"^license:[ \t]*(\S.*)$", head[0], re.MULTILINE) if head else None
        return found[1].strip().strip("\"'") if found else None

    def model(self, device: torch.device = CPU, *, decoder: bool = True) -> PreTrainedModel:
        """The model with its weights on `device`, in the precision and with the attention of the configuration.

        Tensors go from the files to the device one by one: no process holds a second copy of the model, not even where
        they change their precision on the way. Without its `decoder` the language model has no layers, and their
        weights are not read.
        """
        import transformers

        from components.models.quiet import without_progress_bars, without_reports

        _register_tower()
        attention = self.config.attention
        if attention == "auto":
            attention = "sdpa" if torch.cuda.is_available() else "eager"
        config = self.model_config()
        if not decoder:
            text = config.get_text_config(decoder=True)
            text.num_hidden_layers = 0
            if getattr(text, "layer_types", None) is not None:
                text.layer_types = []
        try:
            with without_progress_bars(), nullcontext() if decoder else without_reports():
                loader = getattr(transformers, self.family_class().auto_class)
                return loader.from_pretrained(
                    self.location(weights=True),
                    config=config,
                    dtype=torch_dtype(self.config),
                    attn_implementation=attention,
                    device_map={"": device},
                )
        except pickle.UnpicklingError as error:
            raise ConfigError(
                f"the weights of backbone {self.config.name!r} are pickled with objects that could run code, so they "
                "are not loaded; give them as safetensors."
            ) from error
        except (OSError, ValueError) as error:
            raise self._not_loaded("model", error) from error

    def _chat_template(self, tokenizer: PreTrainedTokenizerFast) -> str | None:
        """The Jinja source: of chat_template.jinja or the tokenizer, else of the file that older processors wrote."""
        found: object = tokenizer.chat_template
        older = self.folder(weights=False) / "chat_template.json"
        if not found and older.is_file():
            found = json.loads(older.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(found, dict):  # several under names
            found = found.get("default")
        return found if isinstance(found, str) else None

    def _weights(self, folder: Path) -> list[Path]:
        """The weight files; `ConfigError` where one is missing or was cut off."""
        lacking = missing_shards(folder)
        if lacking:
            raise ConfigError(
                f"{folder} lacks {', '.join(lacking)}, which its index names; give a complete model directory."
            )
        files = sorted({path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)})
        if not files:
            raise ConfigError(
                f"{folder} has no weight file ({', '.join(WEIGHT_PATTERNS)}); give a complete model directory."
            )
        for path in files:
            _require_whole(path)
        return files

    def _require_one_of(self, part: str, names: Sequence[str]) -> None:
        folder = self.folder(weights=False)
        if not any((folder / name).is_file() for name in names):
            raise ConfigError(
                f"backbone {self.config.name!r} has no file of its {part} (such as {names[0]}); give a complete model "
                "directory."
            )

    def _not_loaded(self, part: str, error: Exception) -> ConfigError:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        first = line.split(". ")[0].rstrip(".")
        wanted = re.search(r"requires the (\w+) library|Missing optional dependencies: (\w+)", str(error))
        if wanted is not None:
            package = (wanted[1] or wanted[2]).lower()
            return ConfigError(
                f"the {part} of backbone {self.config.name!r} needs the package {package}, which is not installed; run "
                f"`pip install {package}`."
            )
        return ConfigError(
            f"the {part} of backbone {self.config.name!r} cannot be loaded ({first}); give {accepted_names()} of a "
            "supported model."
        )


def _require_whole(path: Path) -> None:
    """Raise `ConfigError` for a safetensors file whose end is missing, by its header alone."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ConfigError(
            f"{path} is not a complete safetensors file ({error}); it may come from an interrupted download or copy; "
            "fetch it again."
        ) from error


def model_source(config: BackboneConfig) -> ModelSource:
    """The source of the backbone called `config.name`."""
    embedded = EMBEDDED.get(config.name)
    return ModelSource(config) if embedded is None else embedded.source(config)


def remembered(key: str, compute: Callable[[], str]) -> str:
    """`compute()`, kept in the cache below `key`."""
    memo = cache_dir() / "fingerprints" / hashlib.sha256(key.encode()).hexdigest()
    if not memo.is_file():
        write_text(memo, compute())
    return memo.read_text(encoding="utf-8")


def _register_tower() -> None:
    """Tell transformers about the tower of assembled `smol` directories, which may be given by their path, too."""
    from components.models.embedded import efficientnet  # noqa: F401


def _stable(config: dict[str, object]) -> dict[str, object]:
    stable = {name: value for name, value in config.items() if name not in VOLATILE_FIELDS}
    return {name: _stable(value) if isinstance(value, dict) else value for name, value in stable.items()}
