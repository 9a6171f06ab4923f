"""A family of another package: its entry point makes its model type a supported one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers as hf

from components.core.errors import ConfigError
from components.data.batch import IGNORE, collate
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.models.families import supported_types
from tests.families import chats, reference
from tests.families.alphabets import byte_level
from tests.families.talks import conversations, rows
from tests.families.writing import CHATML, TEXT, VISION, ids, save

FAMILY = '''
from components.models.families.text import Text


class Olmo2(Text):
    """A decoder that Littoral does not name itself."""
'''


@pytest.fixture
def olmo2(tmp_path: Path) -> Path:
    """A model type that transformers knows and Littoral does not."""
    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    config = hf.Olmo2Config(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=False)
    folder = tmp_path / "olmo2"
    save(folder, hf.Olmo2ForCausalLM, config, tokenizer, chat=chats.QWEN3, ends=["<|im_end|>"])
    return folder


def test_a_type_that_nobody_supports_is_one_sentence(olmo2: Path) -> None:
    with pytest.raises(ConfigError, match=r"is of the type 'olmo2', which is not supported; .*: gemma3, .*qwen3_vl"):
        build_encoder(BackboneConfig(name=str(olmo2)))


@pytest.fixture
def vipllava(tmp_path: Path) -> Path:
    """A tower of which several layers are read, and Llama."""
    tokenizer = byte_level([*CHATML, "<image>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=28, patch_size=14, projection_dim=24),
        text_config=hf.LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        vision_feature_layer=[-2, -1],
        **ids(tokenizer, image_token_index="<image>"),
    )
    folder = tmp_path / "vipllava"
    save(
        folder,
        hf.VipLlavaForConditionalGeneration,
        config,
        tokenizer,
        chat=chats.QWEN3_VL.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>"),
        ends=["<|im_end|>"],
        pictures=hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        processor="LlavaProcessor",
        settings={
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
        },
    )
    return folder


def installed(folder: Path, code: str, entry: str) -> Path:
    """A folder as pip leaves it: a module `my_family`, and what says that `entry` is in it."""
    described = folder / "my_family-1.dist-info"
    described.mkdir(parents=True)
    (folder / "my_family.py").write_text(code)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: my-family\nVersion: 1\n")
    (described / "entry_points.txt").write_text(f"[littoral.families]\n{entry}\n")
    return folder


def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "guides" / "models.md").read_text(encoding="utf-8")


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For `syspath_prepend`; what was imported from there is forgotten."""
    yield monkeypatch
    sys.modules.pop("my_family", None)


def test_an_installed_package_adds_a_type(olmo2: Path, tmp_path: Path, path: pytest.MonkeyPatch) -> None:
    path.syspath_prepend(installed(tmp_path / "site", FAMILY, "olmo2 = my_family:Olmo2"))
    answers_as_transformers_does(olmo2, "qwen3")


def test_the_example_of_the_page_is_complete(vipllava: Path, tmp_path: Path, path: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    (entry,) = re.findall(r'entry-points."littoral.families"\]\n(.*?)\n```', page())
    assert len(code.splitlines()) <= 40
    path.syspath_prepend(installed(tmp_path / "site", code, entry.replace('"', "")))
    assert "vipllava" in supported_types()
    answers_as_transformers_does(vipllava, "internvl")
    config = BackboneConfig(name=str(vipllava), pad_to_square=False)
    backbone, encoder, own = load_backbone(config), build_encoder(config), reference.load(vipllava)
    examples = [encoder.training_example(each) for each in rows("internvl")]
    outputs = backbone(collate(examples, pad_id=encoder.pad_id, padding_side="right"))
    for index, (talk, example) in enumerate(zip(conversations("internvl"), examples, strict=True)):
        inputs = own.inputs(talk, answering=False)
        size = len(example.input_ids)  # a line break behind the last answer teaches nothing
        expected = own.logits(inputs)[: size - 1][example.labels[1:] != IGNORE]
        assert inputs["input_ids"][0, :size].tolist() == example.input_ids.tolist()
        torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-5, atol=2e-5)


def answers_as_transformers_does(folder: Path, name: str) -> None:
    """Greedy replies to a mixed batch: the conversations that the checkpoint `name` is tried on."""
    config = BackboneConfig(name=str(folder), pad_to_square=False)
    backbone, encoder, own = load_backbone(config), build_encoder(config), reference.load(folder)
    prompts = [encoder.prompt_example(row) for row in rows(name)]
    replies = backbone.generate(collate(prompts, pad_id=encoder.pad_id, padding_side="left"), max_new_tokens=6)
    expected = [own.reply(own.inputs(talk[:-1]), max_new_tokens=6) for talk in conversations(name)]
    assert replies == expected
