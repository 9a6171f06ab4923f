"""Methods of every kind on every model type: two tasks are learned, saved, reloaded and answered alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from components.core.errors import ConfigError
from components.methods import method_config
from components.methods.base import MethodState
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from tests.contract.toy_tasks import Toy, attached, learn, logits, told, toy
from tests.families import tiny
from tests.families.reference import said
from tests.families.talks import picture, row

# One of each kind: a LoRA, experts with a gate, rehearsal by penalty on single rows, projections of gradients, prompts
# before the rows, prompts in the attention, prompts chosen by pictures, routes by pictures, routes by text, merging,
# and the projector.
METHODS = (
    "sequential_lora",
    "moelora",
    "ewc",
    "keep_lora",
    "l2p",
    "dual_prompt",
    "modal_prompt",
    "hide",
    "lcia",
    "merging",
    "smolora",
    "eproj",
)


@dataclass(frozen=True, kw_only=True)
class Learning:
    name: str
    config: BackboneConfig
    toys: list[Toy]


@pytest.fixture(scope="module", params=tiny.params())
def learning(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learning:
    folder = tiny.write(request.param, tmp_path_factory.mktemp(request.param))
    config = BackboneConfig(name=str(folder))
    encoder, pictured = build_encoder(config), request.param not in tiny.TEXT_ONLY
    toys = []
    for index, words in enumerate((("red", "green"), ("up", "down"))):
        shown: list[list[Image.Image]] = [[picture(40 + 9 * number, 30)] if pictured else [] for number in range(2)]
        rows = [
            row([said("user", *images, f"say {word}"), said("assistant", word)], number)
            for number, (images, word) in enumerate(zip(shown, words, strict=True))
        ]
        toys.append(toy(index, f"task {index}", rows, encoder))
    return Learning(name=request.param, config=config, toys=toys)


@pytest.mark.shows("train", "evaluate", "resume")
@pytest.mark.parametrize("method_name", METHODS)
def test_two_tasks_are_learned_and_come_back_from_disk(
    learning: Learning, method_name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    options = method_config(method_name).tiny()
    toys = [told(each) for each in learning.toys] if options.needs_task_id else learning.toys
    backbone = load_backbone(learning.config)
    if method_name == "eproj" and backbone.family.projector is None:
        record_property("refused", True)
        with pytest.raises(ConfigError, match="choose another method"):
            options.check_family(type(backbone.family), backbone=learning.name)
        with pytest.raises(ConfigError, match="no projector"):
            attached(options, backbone)
        return
    method = attached(options, backbone)
    losses = [learn(method, backbone, each, updates=3, rate=1e-2) for each in toys]
    assert losses[0][-1] < losses[0][0]
    state = method.state_dict(backbone)
    save_file(state.tensors, tmp_path / "state.safetensors")
    structure = json.loads(json.dumps(state.structure))
    other_backbone = load_backbone(learning.config)
    reread = MethodState(tensors=load_file(tmp_path / "state.safetensors"), structure=structure)
    other = attached(options, other_backbone, reread)
    for each in toys:
        assert torch.equal(logits(other, other_backbone, each.batch), logits(method, backbone, each.batch))
        with method.select(backbone, each.prompts), other.select(other_backbone, each.prompts):
            answers = backbone.generate(each.prompts, max_new_tokens=3)
            assert other_backbone.generate(each.prompts, max_new_tokens=3) == answers
