"""Projectors, frozen or trained, and prompts with a head under real engines.

ZeRO 2 and 3 on two workers give plain torch's losses on one, also where a worker's rows have no picture.

python -m pytest tests/integration/test_projector_engines.py
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from engine_job import UPDATES, Job, losses_of

from components.methods.base import MethodConfig, SequentialLoraConfig
from components.methods.eproj import EProjConfig
from components.methods.modal_prompt import ModalPromptConfig

TOLERANCE = 2e-4  # as in test_engine.py
METHODS: dict[str, MethodConfig] = {
    "frozen projector": SequentialLoraConfig(rank=4),
    "projector": SequentialLoraConfig(rank=4, train_projector=True),
    "eproj": EProjConfig(sentence_encoder="hash", threshold=0.0, importance_samples=0, penalty_weight=1e4),
    "modal_prompt": ModalPromptConfig(sentence_encoder="hash", prompt_length=4),
}
PICTURES = {"frozen projector": True, "projector": True, "eproj": True, "modal_prompt": False}


@functools.cache
def reference(name: str) -> list[float]:
    return losses_of(Job(stage=None, method=METHODS[name], pictures=PICTURES[name]))


def test_the_penalty_changes_the_second_task() -> None:
    """Otherwise the comparison below would prove nothing about it."""
    config = EProjConfig(sentence_encoder="hash", threshold=0.0, importance_samples=0, penalty_weight=0.0)
    without, regularised = losses_of(Job(stage=None, method=config, pictures=True)), reference("eproj")
    assert regularised[: UPDATES + 1] == pytest.approx(without[: UPDATES + 1], rel=TOLERANCE)
    assert abs(regularised[-2] / without[-2] - 1) > 10 * TOLERANCE


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "job",
    [Job(stage=2, world_size=2, accumulation=2), Job(stage=3, world_size=2, accumulation=2, interrupt_at=3)],
    ids=["zero-2", "zero-3"],
)
def test_equal_to_plain_torch_on_one_worker(name: str, job: Job) -> None:
    losses = losses_of(replace(job, method=METHODS[name], pictures=PICTURES[name]))
    assert losses == pytest.approx(reference(name), rel=TOLERANCE)
    assert len(losses) == 2 * (UPDATES + 1)
