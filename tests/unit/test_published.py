"""Presets for LLaVA-1.5: what papers and their code run a method with, whatever order the words have."""

from __future__ import annotations

import dataclasses

import pytest

from components.methods import METHODS
from components.training.config import RunConfig
from pipelines.cli import Command, parse
from pipelines.presets import PRESETS, PUBLISHED, preset, with_method
from pipelines.published import BY_METHOD, ELSEWHERE, LORA


def run(line: str) -> RunConfig:
    command: Command = parse(line.split(), program="coast.py", description="")
    return command.run


# preset and method -> rate, samples per update, rank, alpha; of CoIN's scripts (zackschen/CoIN 4122465, its first ones
# e045ab8), LCIA's (JingyangQiao/CoIN efa9cb4) and traces of Continual LLaVA's (pear-blossoms/cv805).
@pytest.mark.parametrize(
    ("line", "rate", "batch", "options"),
    [
        (
            "llava-7b-coast",
            2e-5,
            32,
            {"rank": 8, "slots_per_task": 8, "top_m": 4, "key_groups": 4, "targets": "o_proj"},
        ),
        ("llava-7b-coin", 2e-4, 128, {"rank": 128, "alpha": 256.0, "num_experts": 8, "dropout": 0.05}),
        ("llava-7b-coin --method lcia", 2e-4, 128, {"rank": 128, "alpha": 256.0, "kappa": 2.0, "threshold": 0.9}),
        (
            "llava-13b-coin --method sequential-lora",
            2e-4,
            128,
            {"rank": 128, "alpha": 256.0, "targets": "all_linear", "train_projector": True, "projector_rate": 0.1},
        ),
        ("llava-7b-coast --method sequential-lora", 2e-4, 32, {"rank": 128, "train_projector": False}),
        ("llava-7b --method sequential-lora", 2e-4, 32, {"rank": 128}),
        ("llava-7b-coin --method smolora", 1e-4, 128, {"dropout": 0.05}),
        ("llava-7b-coin --method l2p", 0.1, 128, {}),
    ],
)
def test_a_method_has_its_published_options(line: str, rate: float, batch: int, options: dict[str, object]) -> None:
    found = run(line)
    assert found.optimizer.learning_rate == rate
    assert (found.training.global_batch_size, found.training.epochs, found.training.updates_per_task) == (
        batch,
        1,
        None,
    )
    assert found.training.optimizer.warmup_ratio == 0.03
    assert {name: getattr(found.method, name) for name in options} == options
    assert (found.backbone.dtype, found.backbone.max_length) == ("bfloat16", 2048)
    assert found.cluster.use_gpu == "auto"


def test_a_given_option_wins() -> None:
    found = run("llava-7b-coin --method lcia --method.rank 16 --training.optimizer.learning-rate 1e-3")
    assert (found.method.options()["rank"], found.optimizer.learning_rate) == (16, 1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_method_can_be_named(name: str) -> None:
    for method in METHODS:
        found = with_method(name, preset(name), method)
        assert found.method.name == method
        assert found.backbone == PRESETS[name]().backbone


def test_published_options_are_options() -> None:
    tables = [*BY_METHOD.values(), ELSEWHERE]
    for method, found in (item for table in tables for item in table.items()):
        assert set(found.options) <= {item.name for item in dataclasses.fields(METHODS[method])}
    assert set(LORA) <= {item.name for item in dataclasses.fields(METHODS["sequential_lora"])}
