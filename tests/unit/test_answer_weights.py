"""Weights of answers: what counts in the loss, and that they arrive there."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from components.core.errors import DataError
from components.data.batch import IGNORE, collate
from components.data.rows import Row, Turn
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.training.streaming import ENCODED_SCHEMA, _example_of, _record_of, examples
from tests.pictures import pixels_of
from tests.unit.sample_rows import picture, row


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(BackboneConfig(name="pocket"))


def weighted(*weights: float, image: bytes | None = None) -> Row:
    """Three answers of these weights."""
    first = "<image>\nWhat?" if image else "What?"
    plain = row(first, "red", "And now?", "blue square", "And then?", "a yellow star", image=image)
    answers = iter(weights)
    turns = [turn if turn.speaker == "human" else replace(turn, weight=next(answers)) for turn in plain.turns]
    return replace(plain, turns=tuple(turns))


def test_an_answer_of_weight_0_is_context_only(encoder: Encoder) -> None:
    whole, partly = encoder.training_example(weighted(1, 1, 1)), encoder.training_example(weighted(0, 1, 0))
    assert torch.equal(whole.input_ids, partly.input_ids)
    assert encoder.decode(partly.labels[partly.labels != IGNORE]) == "blue square"
    assert int((partly.labels == encoder.end_id).sum()) == 1
    assert whole.weights is None
    assert partly.weights is None  # labels say it all


def test_the_loss_is_the_weighted_mean(encoder: Encoder) -> None:
    backbone = load_backbone(BackboneConfig(name="pocket"))
    rows = [weighted(2, 0, 0.5, image=picture((250, 0, 0))), weighted(1, 1, 1), weighted(0.25, 3, 0)]
    batch = collate([encoder.training_example(each) for each in rows], pad_id=encoder.pad_id, padding_side="right")
    with torch.no_grad():
        outputs = backbone(batch)
        logits = backbone.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=pixels_of(batch)
        ).logits.double()
    total = weight_sum = 0.0
    for at, each in enumerate(rows):
        ids, ends = batch.input_ids[at].tolist(), iter([turn.weight for turn in each.turns if turn.speaker == "gpt"])
        start = [*encoder._parts.tokenizer.encode("<|im_start|>assistant\n")]
        place = 0
        for weight in ends:  # a loop over the answers, found by the tokens before them
            place = next(p for p in range(place, len(ids)) if ids[p : p + len(start)] == start) + len(start)
            while True:
                total += weight * float(-torch.log_softmax(logits[at, place - 1], dim=-1)[ids[place]])
                weight_sum += weight
                place += 1
                if ids[place - 1] == encoder.end_id:
                    break
    assert float(outputs.loss) == pytest.approx(total / weight_sum, rel=1e-4)
    assert outputs.total_weight == pytest.approx(weight_sum)
    apart = [backbone(single) for single in batch.singles()]
    assert sum(float(one.loss) * one.total_weight for one in apart) == pytest.approx(total, rel=1e-4)


def test_weights_reach_the_worker(encoder: Encoder) -> None:
    sent = [encoder.training_example(weighted(2, 0, 0.5)), encoder.training_example(weighted(1, 0, 1))]
    records = [_record_of(at, one, torch.float32, None) for at, one in enumerate(sent)]
    table = pa.Table.from_pylist(records, schema=ENCODED_SCHEMA)
    first, second = examples(table.to_pylist())
    assert sent[0].weights is not None
    assert first.weights is not None
    assert torch.equal(first.weights, sent[0].weights)
    assert second.weights is None
    assert torch.equal(_example_of(table.to_pylist()[0]).labels, sent[0].labels)
    batch = collate([second, first], pad_id=encoder.pad_id, padding_side="left")
    assert batch.weights is not None
    assert batch.weights[0].tolist() == [1.0] * batch.input_ids.shape[1]
    assert torch.equal(batch.weights[1], sent[0].weights)


def test_a_row_of_which_nothing_counts_is_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="row r1: all its answers have weight 0"):
        encoder.training_example(weighted(0, 0, 0))
    assert len(encoder.prompt_example(weighted(0, 0, 0)).input_ids)  # it can be asked


def test_equal_weights_change_nothing(encoder: Encoder) -> None:
    backbone = load_backbone(BackboneConfig(name="pocket"))
    turns = (Turn(speaker="human", text="What?"), Turn(speaker="gpt", text="red", weight=3.0))
    for each, weights in ((replace(row("What?", "red"), turns=turns), True), (row("What?", "red"), False)):
        batch = collate([encoder.training_example(each)], pad_id=encoder.pad_id, padding_side="right")
        assert (batch.weights is not None) == weights
        assert float(backbone(batch).loss) == pytest.approx(
            float(backbone(replace(batch, weights=None)).loss), rel=1e-6
        )
