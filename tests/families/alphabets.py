"""Tiny tokenizers of the three kinds that the supported models have, with the real names of their special tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# How GPT-4 and Qwen split text before they merge bytes: line breaks stay together and may form one token.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_MERGES = [("Ċ", "Ċ"), (".", "Ċ"), ("t", "h"), ("Ġ", "th"), ("Ġth", "e"), ("h", "i"), ("hi", "s")]
PIECE_MERGES = [("\n", "\n"), ("t", "h"), ("▁", "th"), ("▁th", "e"), ("▁", "▁")]
PRINTABLE = [chr(code) for code in range(33, 127)]


def byte_level(specials: Sequence[str], *, added: Sequence[str] = (), **names: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE without a start token of its own, as Qwen2, SmolLM2 and Llama 3 have.

    `names` are the roles of tokens: `eos_token`, `pad_token`, `bos_token` and `extra_special_tokens`. The tokens
    `added` are in the vocabulary as whole pieces but are not special.
    """
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + [first + second for first, second in BYTE_MERGES]
    tokenizer = Tokenizer(models.BPE(vocab=_numbered(pieces), merges=BYTE_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer, specials, added, names)


def sentence_pieces(
    specials: Sequence[str], *, added: Sequence[str] = (), start: str | None = None, **names: Any
) -> PreTrainedTokenizerFast:
    """BPE with byte fallback and a mark for blanks, as Gemma has; `start` is put before every text."""
    pieces = [*specials, *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "\n", *PRINTABLE]
    pieces += [first + second for first, second in PIECE_MERGES]
    tokenizer = Tokenizer(
        models.BPE(vocab=_numbered(pieces), merges=PIECE_MERGES, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, specials.index(start))]
        )
    return _finished(tokenizer, specials, added, {"unk_token": "<unk>", **names})


def starting(tokenizer: PreTrainedTokenizerFast, start: str) -> PreTrainedTokenizerFast:
    """The same tokenizer, which now puts the token `start` before every text."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, tokenizer.convert_tokens_to_ids(start))]
    )
    return tokenizer


def _numbered(pieces: Sequence[str]) -> dict[str, int]:
    return {piece: index for index, piece in enumerate(pieces)}


def _finished(
    tokenizer: Tokenizer, specials: Sequence[str], added: Sequence[str], names: Mapping[str, Any]
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
