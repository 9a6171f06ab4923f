"""Models of the hub: what is downloaded, from a server on this machine, and what is said where it cannot be."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, served
from llava_checkpoint import write_checkpoint
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from components.core.errors import ConfigError
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.hub import weight_files
from components.models.source import model_source

SMALL = {"config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"}

# In a process of its own: the hub's client reads its settings when it is imported.
FETCH = """
import json, sys
from components.core.errors import ConfigError
from components.models.hub import snapshot
for line in sys.stdin:
    name, weights = json.loads(line)
    try:
        found = sorted(path.name for path in snapshot(name, weights=weights, otherwise="a directory").iterdir())
    except ConfigError as error:
        found = str(error)
    print(json.dumps(found))
"""
LOAD = """
import json, sys
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.encoding import build_encoder
from components.models.source import model_source
for line in sys.stdin:
    config = BackboneConfig(name=json.loads(line)[0])
    build_encoder(config)
    source = model_source(config)
    print(json.dumps([source.fingerprint(), sum(p.numel() for p in source.model().parameters())]))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """Models with their weights in two formats, in shards, pickled, behind a licence, and in a format of others."""
    root = tmp_path_factory.mktemp("hub")
    whole = write_checkpoint(root / "tiny" / "both")
    torch.save(load_file(whole / "model.safetensors"), whole / "pytorch_model.bin")
    (whole / "README.md").write_text("# A card\n")
    (whole / "training_args.bin").write_bytes(b"not weights")
    shards = write_checkpoint(root / "tiny" / "shards")
    (shards / "model.safetensors").unlink()
    model = LlavaForConditionalGeneration.from_pretrained(whole)
    model.save_pretrained(shards, max_shard_size="40KB")
    pickled = write_checkpoint(root / "tiny" / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    write_checkpoint(root / "tiny" / "licensed")
    bare = write_checkpoint(root / "tiny" / "bare")
    (bare / "model.safetensors").rename(bare / "weights.gguf")
    with served(root, gated=frozenset({"tiny/licensed"})) as server:
        yield server


def ask(program: str, hub: HubServer, cache: Path, *models: tuple[str, bool], **settings: str) -> list[Any]:
    """What `program` prints for each model, with the cache in `cache`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "LITTORAL_CACHE": str(cache / "littoral")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="".join(json.dumps(model) + "\n" for model in models),
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_is_downloaded_and_that_it_is_only_once(hub: HubServer, tmp_path: Path) -> None:
    small, again, both, shards, pickled, missing, licensed, bare = ask(
        FETCH,
        hub,
        tmp_path,
        ("tiny/both", False),
        ("tiny/both", False),
        ("tiny/both", True),
        ("tiny/shards", True),
        ("tiny/pickled", True),
        ("tiny/nowhere", True),
        ("tiny/licensed", True),
        ("tiny/bare", True),
    )
    generation = {"generation_config.json"}
    assert set(small) == set(again) == SMALL | generation
    assert set(both) == SMALL | generation | {"model.safetensors"}
    weights = set(shards) - SMALL - generation
    assert len(weights) > 2
    assert "model.safetensors.index.json" in weights
    assert set(pickled) == SMALL | generation | {"pytorch_model.bin"}
    assert "not a model of the hub" in missing
    assert "hf auth login" in licensed
    assert "no weights that can be read safely" in bare
    fetched = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert len(fetched) == len(set(fetched))

    # Whole in the cache: tokenizer, configuration and weights come from there, though the server would answer.
    before = len(hub.asked)
    found = ask(LOAD, hub, tmp_path, ("tiny/both", True), ("tiny/shards", True), ("tiny/pickled", True))
    assert len(hub.asked) == before
    counts = {count for _, count in found}
    expected = load_file(hub.root / "tiny" / "both" / "model.safetensors")
    assert counts == {sum(tensor.numel() for tensor in expected.values())}

    # Half in the cache, and nobody to ask: one sentence with the command.
    (one,) = ask(FETCH, hub, tmp_path / "other", ("tiny/both", False))
    said = ask(FETCH, hub, tmp_path / "other", ("tiny/both", False), ("tiny/both", True), HF_HUB_OFFLINE="1")
    assert said[0] == one
    assert "run `hf download tiny/both` where there is a network" in said[1]
    assert said[1].count("\n") == 0


def test_the_preferred_weights() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    pickled = ["pytorch_model.bin"]
    others = ["model.fp16.safetensors", "consolidated.safetensors", "training_args.bin"]
    assert weight_files([*pickled, *others, *shards]) == shards
    assert weight_files([*pickled, *others]) == pickled
    assert weight_files(["model.safetensors", *shards]) == ["model.safetensors"]
    assert weight_files([*others, *shards[:2]]) == []


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "shards")
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ConfigError, match=rf"lacks {lost.name}, which its index"):
        model_source(BackboneConfig(name=str(folder))).fingerprint()


class Intruder:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Intruder(tmp_path / "made")}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="could run code"):
        model_source(BackboneConfig(name=str(folder))).model()
    assert not (tmp_path / "made").exists()


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    """An image processor that transformers has with torchvision alone; this environment has none."""
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    folder = write_checkpoint(tmp_path / "model")
    (folder / "processor_config.json").unlink()
    kind = json.dumps({"image_processor_type": "Llama4ImageProcessor"})
    (folder / "preprocessor_config.json").write_text(kind, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"needs the package torchvision, .*; run `pip install torchvision`"):
        model_source(BackboneConfig(name=str(folder))).processor_files()


@pytest.mark.parametrize("lacking", ["tokenizer.json", "processor_config.json"])
def test_a_missing_file_of_the_processor_is_named(tmp_path: Path, lacking: str) -> None:
    """Without its files transformers makes a Qwen tokenizer that knows no words."""
    folder = write_checkpoint(tmp_path / "model")
    (folder / lacking).unlink()
    with pytest.raises(ConfigError, match=r"no file of its (tokenizer|image processor) \(such as "):
        model_source(BackboneConfig(name=str(folder))).processor_files()


def test_weights_that_were_cut_off(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"model\.safetensors is not a complete safetensors file"):
        model_source(BackboneConfig(name=str(folder))).fingerprint()


def test_a_picture_token_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    key = "image_token_index" if "image_token_index" in config else "image_token_id"
    (folder / "config.json").write_text(json.dumps(config | {key: 31_999}), encoding="utf-8")
    with pytest.raises(ConfigError, match="token 31999, which its tokenizer does not have"):
        build_encoder(BackboneConfig(name=str(folder)))


def test_shapes_are_counted_without_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    skeleton = model_source(BackboneConfig(name=str(folder), dtype="bfloat16")).skeleton()
    assert sum(p.numel() for p in skeleton.parameters()) == sum(tensor.numel() for tensor in weights.values())
    assert {(p.device.type, p.dtype) for p in skeleton.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.long
def test_a_run_of_a_model_that_is_not_on_this_machine(hub: HubServer, tmp_path: Path) -> None:
    """A dry run takes the small files; without a network, the run says what to do before anything starts."""
    coast = str(Path(__file__).parents[2] / "pipelines" / "coast.py")
    command = [sys.executable, coast, "pocket", "--backbone.name", "tiny/shards", "--method", "sequential-lora"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "LITTORAL_CACHE": str(tmp_path / "littoral")}
    storage = tmp_path / "runs"

    def said(*options: str, **settings: str) -> tuple[int, str, str]:
        given = [*command, "--storage", str(storage), *options]
        done = subprocess.run(
            given, env=environment | settings, capture_output=True, text=True, timeout=300, check=False
        )
        return done.returncode, done.stdout, done.stderr

    before = len(hub.asked)
    code, out, err = said("--dry-run")
    assert code == 0, err
    assert "tiny/shards" in out
    fetched = [line for line in hub.asked[before:] if line.startswith("GET") and "/resolve/" in line]
    assert {line.rsplit("/", 1)[-1] for line in fetched} >= {"config.json", "tokenizer.json"}
    assert not [line for line in fetched if line.endswith(("safetensors", ".bin", ".index.json"))]

    code, out, err = said("--run-id", "one", HF_HUB_OFFLINE="1")
    assert code == 1
    assert "run `hf download tiny/shards` where there is a network" in err
    assert not storage.exists()
