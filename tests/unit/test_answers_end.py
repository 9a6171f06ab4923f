"""A model that has learned its rows by heart scores them: generation ends where training teaches it to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import GenerationConfig

from components.data.batch import collate
from components.metrics import score
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from tests.unit.chat_models import CHATML, LLAMA3, PLAIN, byte_tokenizer, write_chat_model
from tests.unit.llava_checkpoint import write_checkpoint
from tests.unit.sample_rows import picture, row

ROWS = [
    row("<image>\nIs it red?", "Yes", image=picture((250, 0, 0))),
    row("<image>\nIs it red?", "No no no", image=picture((0, 0, 250))),
    row("Which tag?", "<s>"),
    row("End it", "a</s>b<|im_end|>"),
]


KNOWN = 0.05  # a loss at which every token is far likelier than all others


def learned_by_heart(encoder: Encoder, model: Backbone, *, updates: int = 150) -> float:
    """Train all of the language model on `ROWS`, until it knows them; the last loss."""
    batch = collate([encoder.training_example(r) for r in ROWS], pad_id=encoder.pad_id, padding_side="right")
    trained = [*model.language_model.parameters(), *model.model.lm_head.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer, loss = torch.optim.Adam(trained, lr=3e-3), torch.zeros(())
    for _ in range(updates):
        optimizer.zero_grad()
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
        if loss.item() < KNOWN:
            break
    return loss.item()


@pytest.mark.parametrize("template", [CHATML, LLAMA3, PLAIN, "llava"], ids=["chatml", "llama3", "plain", "llava"])
def test_what_was_learned_by_heart_scores(template: str, tmp_path: Path) -> None:
    if template == "llava":
        folder = write_checkpoint(tmp_path)
    else:
        # as base models have it: another end, and a penalty that would forbid "No no no"
        other = 2
        assert byte_tokenizer(template).eos_token_id != other
        generation = GenerationConfig(eos_token_id=other, repetition_penalty=5.0, no_repeat_ngram_size=2)
        folder = write_chat_model(tmp_path, template, generation=generation)
    config = BackboneConfig(name=str(folder))
    encoder, model = build_encoder(config), load_backbone(config)
    assert learned_by_heart(encoder, model) < KNOWN
    prompts = collate([encoder.prompt_example(r) for r in ROWS], pad_id=encoder.pad_id, padding_side="left")
    replies = [encoder.decode(ids) for ids in model.generate(prompts, max_new_tokens=24)]
    assert replies == [r.answers[0] for r in ROWS]
    assert [score("exact", reply, r.answers) for reply, r in zip(replies, ROWS, strict=True)] == [1.0] * len(ROWS)


def test_the_output_weight_is_read_once_for_all_rows(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path, CHATML)
    config = BackboneConfig(name=str(folder), dtype="bfloat16")
    encoder, model = build_encoder(config), load_backbone(config)
    questions = [encoder.prompt_example(r) for r in ROWS]
    lessons = [encoder.training_example(r) for r in ROWS]
    layer = model.model.lm_head
    with repeats_of(layer.weight) as repeats:
        model.generate(collate(questions, pad_id=encoder.pad_id, padding_side="left"), max_new_tokens=6)
        model(collate(lessons, pad_id=encoder.pad_id, padding_side="right"))
    assert repeats == []
    # What one piece saves: of a slice, torch multiplies each row with a weight of its own, which it may copy.
    with torch.no_grad(), repeats_of(layer.weight) as repeats:
        layer(torch.zeros(len(ROWS), 3, layer.in_features, dtype=torch.bfloat16)[:, -1:])
    assert repeats
    assert set(repeats) == {len(ROWS)}


@contextmanager
def repeats_of(weight: Tensor) -> Iterator[list[int]]:
    """Lists, at the end, how many copies of the weight [V, D] each product or copy had to do with that had several."""
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
        yield found
    for event in watched.events() or []:
        if event.name in ("aten::bmm", "aten::copy_"):
            shapes = [shape for shape in event.input_shapes if sorted(shape[1:]) == sorted(weight.shape)]
            found += [shape[0] for shape in shapes]
