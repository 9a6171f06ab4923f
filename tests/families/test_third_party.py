"""A family of another package: its entry point makes its model type a supported one."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf

from components.core.errors import ConfigError
from components.data.batch import collate
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from tests.families import chats, reference
from tests.families.alphabets import byte_level
from tests.families.talks import conversations, rows
from tests.families.writing import TEXT, save

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


def test_an_installed_package_adds_a_type(olmo2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site"
    described = installed / "olmo_family-1.dist-info"
    described.mkdir(parents=True)
    (installed / "olmo_family.py").write_text(FAMILY)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: olmo-family\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[littoral.families]\nolmo2 = olmo_family:Olmo2\n")
    monkeypatch.syspath_prepend(installed)
    config = BackboneConfig(name=str(olmo2))
    backbone, encoder, own = load_backbone(config), build_encoder(config), reference.load(olmo2)
    prompts = [encoder.prompt_example(row) for row in rows("qwen3")]
    replies = backbone.generate(collate(prompts, pad_id=encoder.pad_id, padding_side="left"), max_new_tokens=6)
    expected = [own.reply(own.inputs(talk[:-1]), max_new_tokens=6) for talk in conversations("qwen3")]
    assert replies == expected
