"""Every method under the ZeRO stages that it claims: two workers give the losses of plain torch on one.

    python -m pytest tests/integration/test_zero_stages.py                   # stage 3 of those with ways of their own
    python -m pytest tests/integration/test_zero_stages.py --every-method    # every claimed stage of every method

Some rows have pictures and some none, so that a worker meets micro-batches of both kinds. Averaging over workers that
`test_engine.py` and `test_lcia_zero.py` prove further is not repeated here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_job import UPDATES, Job, losses_of

from components.methods import METHODS
from components.methods.base import MethodConfig
from components.methods.cl_moe import ClMoeConfig
from components.methods.continual_llava import ContinualLlavaConfig
from components.methods.eproj import EProjConfig
from components.methods.ewc import EwcConfig
from components.methods.lwf import LwfConfig
from components.methods.modal_prompt import ModalPromptConfig
from components.methods.o_lora import OLoraConfig
from components.methods.pgp import PgpConfig
from components.methods.reg_lora import RegLoraConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.methods.smolora import SmoloraConfig

TOLERANCE = 2e-4  # as in test_engine.py: float32 sums in another order, amplified by the updates
# What a later task adds is made strong, so that leaving it out would show.
STRONG: dict[str, MethodConfig] = {
    "ewc": EwcConfig(rank=4, penalty_weight=30.0),
    "lwf": LwfConfig(rank=4, distillation_weight=10.0),
    "o_lora": OLoraConfig(rank=4, alpha=8.0, orthogonality_weight=0.1, norm_weight=0.01),
    "reg_lora": RegLoraConfig(rank=4, alpha=8.0, penalty_weight=50.0),
    "pgp": PgpConfig(rank=4),
    "eproj": EProjConfig(sentence_encoder="hash", threshold=0.0, importance_samples=0, penalty_weight=1e4),
    "modal_prompt": ModalPromptConfig(sentence_encoder="hash", prompt_length=4),
    "smolora": SmoloraConfig(sentence_encoder="hash", router="straight_through"),
    "cl_moe": ClMoeConfig(sentence_encoder="hash", statistics="layer"),
    # w at a rate of its own: an optimizer's group of one scalar
    "continual_llava": replace(ContinualLlavaConfig.tiny(), contextual_learning_rate=0.5),
}
CONFIGS: dict[str, MethodConfig] = {
    **{name: kind.tiny() for name, kind in METHODS.items() if kind.is_trainable},
    **STRONG,
    "projector": SequentialLoraConfig(rank=4, train_projector=True),
}
# The same without that addition: the first task's losses agree, the second's do not.
WITHOUT: dict[str, MethodConfig] = {
    "ewc": EwcConfig(rank=4, penalty_weight=0.0),
    "lwf": LwfConfig(rank=4, distillation_weight=0.0),
    "o_lora": OLoraConfig(rank=4, alpha=8.0, orthogonality_weight=0.0, norm_weight=0.01),
    "reg_lora": RegLoraConfig(rank=4, alpha=8.0, penalty_weight=0.0),
    "pgp": SequentialLoraConfig(rank=4),
    "eproj": EProjConfig(sentence_encoder="hash", threshold=0.0, importance_samples=0, penalty_weight=0.0),
    "continual_llava": replace(ContinualLlavaConfig.tiny(), contextual_learning_rate=None),
}
HOW = {
    0: Job(stage=0, world_size=2, pictures=True),
    2: Job(stage=2, world_size=2, accumulation=2, interrupt_at=3, pictures=True),
    3: Job(stage=3, world_size=2, accumulation=2, interrupt_at=3, checkpointing=True, pictures=True),
}
CLAIMS = [(name, stage) for name, config in CONFIGS.items() for stage in sorted(config.zero_stages)]
# One with a forward pass more, one with a step of its own, one with a penalty on a projector, one with prompts, one
# with a pool.
KINDS = ("lwf", "pgp", "eproj", "modal_prompt", "continual_llava")
CHOSEN = [(name, stage) for name, stage in CLAIMS if stage == 3 and name in KINDS]  # it shards all that stage 2 does
PLAIN = Job(stage=None, pictures=True)


def claims(config: pytest.Config) -> list[tuple[str, int]]:
    return CLAIMS if config.getoption("--every-method") else CHOSEN


def names(config: pytest.Config) -> list[str]:
    return list(dict.fromkeys(name for name, _ in claims(config)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stage" in metafunc.fixturenames:
        metafunc.parametrize(("name", "stage"), claims(metafunc.config))
    elif metafunc.function is test_the_reference_learns:
        metafunc.parametrize("name", names(metafunc.config))
    elif metafunc.function is test_the_addition_changes_the_second_task:
        metafunc.parametrize("name", [name for name in names(metafunc.config) if name in WITHOUT])


@pytest.fixture(scope="module")
def losses(request: pytest.FixtureRequest) -> dict[Job, list[float]]:
    wanted, chosen = claims(request.config), names(request.config)
    without = [WITHOUT[name] for name in chosen if name in WITHOUT]
    plain = {replace(PLAIN, method=config) for config in (*(CONFIGS[name] for name in chosen), *without)}
    return losses_of([*plain, *(replace(HOW[stage], method=CONFIGS[name]) for name, stage in wanted)])


def test_the_reference_learns(name: str, losses: dict[Job, list[float]]) -> None:
    found = losses[replace(PLAIN, method=CONFIGS[name])]
    assert len(found) == 2 * (UPDATES + 1)
    assert found[UPDATES - 1] < (1 - 10 * TOLERANCE) * found[0]  # prompts learn least: CODA-Prompt 0.4 %


def test_the_addition_changes_the_second_task(name: str, losses: dict[Job, list[float]]) -> None:
    """Otherwise the comparison below would prove nothing about it."""
    added, without = (losses[replace(PLAIN, method=configs[name])] for configs in (CONFIGS, WITHOUT))
    assert added[: UPDATES + 1] == pytest.approx(without[: UPDATES + 1], rel=TOLERANCE)
    assert max(abs(ours / theirs - 1) for ours, theirs in zip(added, without, strict=True)) > 10 * TOLERANCE


def test_equal_to_plain_torch_on_one_worker(name: str, stage: int, losses: dict[Job, list[float]]) -> None:
    expected = losses[replace(PLAIN, method=CONFIGS[name])]
    assert losses[replace(HOW[stage], method=CONFIGS[name])] == pytest.approx(expected, rel=TOLERANCE)
