"""One worker equals two: whatever a method gathers, averages or draws must not depend on the split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy_tasks import Toy, fresh_backbone
from two_workers import answers_of

Answers = dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest) -> tuple[Answers, Answers]:
    """Of one worker and of two, for all methods that are asked about in one start of the processes."""
    items = [each for each in request.session.items if isinstance(each, pytest.Function) and each.path == request.path]
    asked = [each.callspec.params["name"] for each in items]
    return answers_of(asked, world_size=1), answers_of(asked, world_size=2)


@pytest.mark.training_methods
def test_one_worker_equals_two(name: str, answers: tuple[Answers, Answers], toys: list[Toy]) -> None:
    backbone = fresh_backbone().eval()
    for toy, alone, together in zip(toys, answers[0][name], answers[1][name], strict=True):
        with torch.no_grad():
            untrained = backbone(toy.batch).logits
        moved = float((alone - untrained).abs().max())
        assert moved > 0.1, "nothing was learned, so nothing is compared"
        # float32 sums in another order, amplified by Adam's division; a share counted twice or lost moves much more
        torch.testing.assert_close(together, alone, rtol=0.0, atol=0.01 * moved)
