"""On a GPU: every method as on the CPU, every ZeRO stage as plain PyTorch, and a step of a larger model.

python -m pytest tests/gpu
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from proof_engines import METHODS as WITH_DEEPSPEED
from proof_engines import STAGES, TOLERANCE, losses, one_worker
from proof_equality import differences, exact_products, require_equal, seen, tiny_backbones
from proof_model import OPTIMIZER, RandomLlava, at_task, training_batch, update
from proof_scale import SMALL

from components.methods import METHODS
from components.training.engine import TorchEngine

GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("model", ["pocket", "llava"])
def test_a_method_is_what_it_is_on_a_cpu(model: str, name: str, folder: Path) -> None:
    exact_products()
    config = tiny_backbones(folder)[model]
    require_equal(differences(seen(name, config, torch.device("cpu")), seen(name, config, GPU)))


@pytest.mark.parametrize("name", WITH_DEEPSPEED)
def test_deepspeed_learns_what_plain_pytorch_learns(name: str) -> None:
    pytest.importorskip("deepspeed")
    exact_products()
    with one_worker(GPU):
        plain = losses(name, None, GPU, updates=5)
        for stage in STAGES:
            assert losses(name, stage, GPU, updates=5) == pytest.approx(plain, rel=TOLERANCE), f"ZeRO-{stage}"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_updates_in_bfloat16_lower_the_loss(checkpointing: bool, tmp_path: Path) -> None:
    llava = RandomLlava(replace(SMALL, device="cuda"), tmp_path)
    with llava.backbone(gradient_checkpointing=checkpointing) as model:
        method = at_task(model, "sequential_lora", llava.scale, llava.encoder)
        engine = TorchEngine(model, replace(OPTIMIZER, learning_rate=1e-2))
        batch = training_batch(llava.encoder, llava.scale)
        first, *_, last = [float(update(engine, model, method, [batch])) for _ in range(10)]
    assert last < first
