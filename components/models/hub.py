"""Models of the Hugging Face hub: found in its cache, or downloaded into it once.

Only what is used is fetched: the files of configuration, tokenizer and image processor, and the weights in one format.
What is whole in the cache is used as it is, and no server is asked whether there is something newer. Downloads of the
same file by several processes wait for each other, so each file comes once to a machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from components.core.errors import ConfigError

SMALL_SUFFIXES = (".json", ".jinja", ".model", ".txt")
INDEX_SUFFIX = ".index.json"
# In the order of preference: transformers loads safetensors where both are there. Both are read without running code:
# a pickled file is opened with `weights_only`.
WEIGHT_FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))


def snapshot(repository: str, *, weights: bool, what: str = "backbone", otherwise: str) -> Path:
    """The folder of a hub model with its small files and, with `weights`, its weight files.

    Raises `ConfigError` where it is not on this machine and cannot be downloaded: it names the command to run, and what
    to give instead (`otherwise`).
    """
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    named = f"{what} {repository!r}"
    try:
        found = _cached(repository, weights=weights)
        return found if found is not None else _downloaded(repository, weights=weights, named=named)
    except ConfigError:
        raise
    except HFValidationError as error:
        raise ConfigError(f"{named} cannot be a hub model ({_first_line(error)}); give {otherwise}.") from error
    except GatedRepoError as error:
        raise ConfigError(
            f"{named} is for users who accepted its licence: do so on its page, log in with `hf auth login`, and give "
            "the command again."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{named} is not a model of the hub, or a private one; log in with `hf auth login`, or give {otherwise}."
        ) from error
    except Exception as error:  # the hub's client raises those of its HTTP library, which differs between versions
        raise ConfigError(
            f"{named} is not on this machine and cannot be downloaded ({_first_line(error)}); run `hf download "
            f"{repository}` where there is a network, or give {otherwise}."
        ) from error


def weight_files(names: Iterable[str]) -> list[str]:
    """The files among `names` that hold the weights in the preferred format, an index included; [] for none."""
    known = set(names)
    for stem, suffix in WEIGHT_FORMATS:
        whole = f"{stem}.{suffix}"
        if whole in known:
            return [whole]
        shards = sorted(name for name in known if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name))
        index = f"{whole}{INDEX_SUFFIX}"
        if shards and index in known:
            return [*shards, index]
    return []


def missing_shards(folder: Path) -> list[str]:
    """Weight files that an index in `folder` names and that are not there; [] without an index."""
    for stem, suffix in WEIGHT_FORMATS:
        if (folder / f"{stem}.{suffix}").is_file():
            return []
        index = folder / f"{stem}.{suffix}{INDEX_SUFFIX}"
        if index.is_file():
            named = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
            return sorted({str(name) for name in named if not (folder / str(name)).is_file()})
    return []


def _cached(repository: str, *, weights: bool) -> Path | None:
    """The snapshot in the cache if it has all that is needed; asks no server."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json")
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    names = [path.name for path in folder.iterdir()]
    if not {"tokenizer.json", "tokenizer_config.json"}.intersection(names):
        return None
    config = json.loads(Path(found).read_text(encoding="utf-8"))
    if "vision_config" in config and not {"preprocessor_config.json", "processor_config.json"}.intersection(names):
        return None
    if weights and (not weight_files(names) or missing_shards(folder)):
        return None
    return folder


def _downloaded(repository: str, *, weights: bool, named: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    names = [name for name in HfApi().list_repo_files(repository) if "/" not in name]
    wanted = [name for name in names if name.endswith(SMALL_SUFFIXES) and not name.endswith(INDEX_SUFFIX)]
    if weights:
        found = weight_files(names)
        if not found:
            formats = " or ".join(f"{stem}.{suffix}" for stem, suffix in WEIGHT_FORMATS)
            raise ConfigError(f"{named} has no weights that can be read safely ({formats}, whole or in parts).")
        wanted += found
    return Path(snapshot_download(repository, allow_patterns=wanted))


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0].rstrip(".")[:200]
