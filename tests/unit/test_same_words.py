"""The same words give the same experiment: a method's options follow the backbone, however that was named."""

from __future__ import annotations

import pytest

from components.core.errors import ConfigError
from components.methods import METHODS, options_for
from components.models.config import BackboneConfig
from components.models.registry import EMBEDDED
from components.training.config import RunConfig
from components.tuning.space import configured
from pipelines.cli import parse
from pipelines.presets import PRESETS, preset

SMALL = BackboneConfig(name="pocket")


def run(line: str) -> RunConfig:
    return parse(line.split(), program="coast.py", description="").run


NAMES = ("l2p", "dual-prompt", "modal-prompt", "o-lora", "replay", "cf-router", "lcia")
LINES = (
    "pocket --method {}",
    "--backbone.name pocket --method {}",
    "--method {} --backbone.name pocket",
    "--method={} --backbone.name=pocket",
    "coin --method {} --backbone.name pocket",
    "coast-domain --backbone.name smol --method {} --backbone.name pocket",
)


@pytest.mark.parametrize(
    ("line", "name"), [*((line, NAMES[0]) for line in LINES), *((LINES[2], name) for name in NAMES[1:])]
)
def test_every_way_to_name_a_small_backbone_gives_the_methods_options_for_one(line: str, name: str) -> None:
    found = run(line.format(name))
    assert found.backbone.name == "pocket"
    assert found.method == METHODS[name.replace("-", "_")].tiny()


@pytest.mark.parametrize(
    "line",
    [
        "--method l2p",
        "pocket --backbone.name smol --method l2p",
        "pocket --method l2p --backbone.name smol",
        "llava-7b --method l2p",
        "--method l2p --backbone.name /models/llava",
    ],
)
def test_on_any_other_backbone_a_method_has_its_published_options(line: str) -> None:
    assert run(line).method == METHODS["l2p"]()


def test_an_option_that_is_given_wins() -> None:
    found = run("pocket --method l2p --method.sentence-encoder minilm").method
    assert found.options() == METHODS["l2p"].tiny().options() | {"sentence_encoder": "minilm"}


@pytest.mark.parametrize("name", PRESETS)
def test_without_a_method_the_presets_options_hold(name: str) -> None:
    assert run(f"{name} --backbone.name pocket").method == preset(name).method


@pytest.mark.parametrize("fields", [("backbone.name", "method"), ("method", "backbone.name")])
def test_a_sweep_follows_the_same_rule(fields: tuple[str, str]) -> None:
    values = {"backbone.name": "pocket", "method": "l2p", "method.pool_size": 7}
    found = configured(preset("coast-nano"), {field: values[field] for field in ("method.pool_size", *fields)})
    assert found.method.options() == METHODS["l2p"].tiny().options() | {"pool_size": 7}


def test_small_backbones_are_named_by_the_registry() -> None:
    small = {name for name in EMBEDDED if BackboneConfig(name=name).is_small}
    assert small == {"pocket"}
    assert not BackboneConfig(name="/models/pocket").is_small


def test_options_for_small_backbones_are_told_from_published_ones() -> None:
    assert options_for("l2p", SMALL).small_backbone_options() == {"sentence_encoder": "hash", "prompt_length": 40}
    assert METHODS["l2p"]().small_backbone_options() == {}
    assert options_for("sequential_lora", SMALL).small_backbone_options() == {}


def test_a_method_without_its_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="--method needs a name"):
        parse(["pocket", "--method"], program="coast.py", description="")
