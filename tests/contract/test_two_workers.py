"""One worker equals two: whatever a method gathers, averages or draws must not depend on the split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_tasks import Toy, fresh_backbone
from two_workers import answers_of

from components.methods import METHODS, method_config

Answers = dict[str, Tensor]


@pytest.fixture(scope="session")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Answers]:
    """Of one worker and of two, for all methods in one start of the processes."""
    chosen = request.config.getoption("--method-contract")
    names = [name for name in ([chosen] if chosen else METHODS) if method_config(name).is_trainable]
    folder = tmp_path_factory.mktemp("two_workers")
    return answers_of(names, world_size=1, folder=folder), answers_of(names, world_size=2, folder=folder)


@pytest.mark.training_methods
def test_one_worker_equals_two(name: str, answers: tuple[Answers, Answers], toys: list[Toy]) -> None:
    alone, together = answers
    backbone = fresh_backbone().eval()
    for toy in toys:
        key = f"{name}/{toy.info.name}"
        with torch.no_grad():
            untrained = backbone(toy.batch).logits
        moved = float((alone[key] - untrained).abs().max())
        assert moved > 0.1, "nothing was learned, so nothing is compared"
        # float32 sums in another order, amplified by Adam's division; a share counted twice or lost moves much more
        torch.testing.assert_close(together[key], alone[key], rtol=0.0, atol=0.01 * moved)
