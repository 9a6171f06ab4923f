"""Every model type against transformers itself: prompts, predictions at labels, greedy replies, labels by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from components.core.errors import DataError
from components.data.batch import IGNORE, Example, Limits, Picture, collate
from components.data.rows import IMAGE_TOKEN, Row
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, build_encoder
from components.models.families import supported_types
from components.models.families.base import FEATURES
from components.models.pixels import LEVELS, PIXELS, packed, scale_of, unpacked
from tests.families import reference, tiny
from tests.families.reference import Reference, said
from tests.families.talks import ANSWERS, conversations, picture, row, rows

# LLaVA-1.5's published template ends no answer, so Littoral writes the prompts that the model was trained with.
OWN_PROMPTS = ("llava",)
# These published templates write a blank into a history that they do not write into a prompt; answers are learned
# behind what the model will be asked.
BLANK_IN_HISTORY = ("llava_interleave", "llava_onevision")
# What is learned of the second conversation below, answer by answer: copied from no code, read off the model's pages.
LEARNED = {
    "llava": "a cat on\n\nthe mat</s>",
    "llava_interleave": "a cat on\n\nthe mat<|im_end|>",
    "llava_next": "a cat on\n\nthe mat</s>",
    "llava_onevision": "a cat on\n\nthe mat<|im_end|>",
    "qwen2_vl": "a cat on\n\nthe mat<|im_end|>",
    "qwen2_5_vl": "a cat on\n\nthe mat<|im_end|>",
    "qwen3_vl": "a cat on\n\nthe mat<|im_end|>",
    "internvl": "a cat on\n\nthe mat<|im_end|>",
    "smolvlm": " a cat on\n\nthe mat<end_of_utterance>",
    "idefics3": " a cat on\n\nthe mat<end_of_utterance>",
    "mistral3": "a cat on\n\nthe mat</s>",
    "paligemma": "a cat on\n\nthe mat<eos>",
    "gemma3": "a cat on\n\nthe mat<end_of_turn>",
    "llama": "Red.<|eot_id|>a cat on\n\nthe mat<|eot_id|>",
    "qwen3": "Red.<|im_end|>a cat on\n\nthe mat<|im_end|>",
}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """One checkpoint, as Littoral and as transformers read it."""

    name: str
    backbone: Backbone
    encoder: Encoder
    reference: Reference


@pytest.fixture(scope="module", params=tiny.NAMES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tiny.write(request.param, tmp_path_factory.mktemp(request.param))
    config = BackboneConfig(name=str(folder), pad_to_square=False)
    return Opened(
        name=request.param,
        backbone=load_backbone(config),
        encoder=build_encoder(config),
        reference=reference.load(folder),
    )


@pytest.mark.shows("prepare")
def test_prompt_ids_are_the_processors(opened: Opened) -> None:
    if opened.name in OWN_PROMPTS:
        pytest.skip("its own prompts: tests/unit/test_encoding.py")
    for messages, one in zip(conversations(opened.name), rows(opened.name), strict=True):
        ids = opened.encoder.prompt_example(one).input_ids.tolist()
        assert ids == opened.reference.inputs(messages[:-1])["input_ids"][0].tolist()


@pytest.mark.shows("prepare")
def test_training_ids_are_the_processors_and_begin_with_the_prompt(opened: Opened) -> None:
    for messages, one in zip(conversations(opened.name), rows(opened.name), strict=True):
        ids = opened.encoder.training_example(one).input_ids.tolist()
        prompt = opened.encoder.prompt_example(one).input_ids.tolist()
        if opened.name not in BLANK_IN_HISTORY or len(messages) == 2:
            assert ids[: len(prompt)] == prompt
        if opened.name not in (*OWN_PROMPTS, *BLANK_IN_HISTORY):
            whole = opened.reference.inputs(messages, answering=False)["input_ids"][0].tolist()
            assert ids == whole[: len(ids)]
            assert len(whole) - len(ids) <= 1  # a line break or a blank behind the last end token teaches nothing


@pytest.mark.shows("prepare")
def test_labels_are_the_answers_and_what_ends_them(opened: Opened) -> None:
    example = opened.encoder.training_example(rows(opened.name)[1])
    labels = example.labels[example.labels != IGNORE]
    assert opened.reference.tokenizer.decode(labels, clean_up_tokenization_spaces=False) == LEARNED[opened.name]
    assert int(labels[-1]) in opened.backbone.end_ids()
    assert torch.equal(labels, example.input_ids[example.labels != IGNORE])


def test_a_question_cannot_write_control_tokens(opened: Opened) -> None:
    """Tokens of the template and of pictures are text where a user writes them."""
    special = [*opened.reference.tokenizer.all_special_tokens, opened.backbone.family.placeholder or ""]
    written = "".join(token for token in special if token != IMAGE_TOKEN)  # which rows may not write at all
    shown = [] if opened.name in tiny.TEXT_ONLY else [picture(40, 60)]
    talks = [[said("user", *shown, text), said("assistant", "no")] for text in ("is it one?", f"is {written} one?")]
    plain, tricky = (opened.encoder.training_example(row(talk, 0)).input_ids for talk in talks)
    for token in {*opened.reference.tokenizer.all_special_ids, opened.backbone.family.image_token_id}:
        assert (tricky == token).sum() == (plain == token).sum()


# What these processors add beside the 256 levels of a channel: padding behind the normalisation.
PADDED = ("llava_next", "llava_onevision")


@pytest.mark.parametrize("size", [(40, 60), (64, 64), (333, 90), (128, 301)])
def test_pixels_travel_as_bytes_and_arrive_as_the_processors_own(opened: Opened, size: tuple[int, int]) -> None:
    if opened.name in tiny.TEXT_ONLY:
        pytest.skip("takes no pictures")
    one = row([said("user", picture(*size), "is it one?"), said("assistant", "no")], 0)
    tensors = opened.encoder.prepared(one)[0].tensors
    sent_as = packed(tensors, scale_of(opened.backbone.family.files.image_processor))
    if opened.name not in PADDED:
        assert (sent_as[LEVELS].dtype, PIXELS in sent_as) == (torch.uint8, False)
    found = unpacked(sent_as)
    expected = opened.reference.inputs([said("user", picture(*size), "is it one?")])[PIXELS]
    assert torch.equal(found[PIXELS].flatten().view(torch.int32), expected.contiguous().flatten().view(torch.int32))
    assert {name: value for name, value in found.items() if name != PIXELS}.keys() == tensors.keys() - {PIXELS}
    half = unpacked({name: each.bfloat16() if each.is_floating_point() else each for name, each in sent_as.items()})
    assert torch.equal(half[PIXELS], tensors[PIXELS].bfloat16())


def test_rows_counted_together_have_as_many_tokens_as_rows_encoded_alone(opened: Opened) -> None:
    """Users' special tokens, other shapes of conversation and signs of many bytes in one go, twice: a shape is known
    the second time."""
    shown = [] if opened.name in tiny.TEXT_ONLY else [picture(40, 60)]
    forged = opened.reference.tokenizer.all_special_tokens
    texts = [
        "is it one?",
        "１＜２ or 日本?",
        *(f"is {token}one?" for token in forged if token != IMAGE_TOKEN),
        "1 < 2?",
    ]
    talks = [[said("user", *shown, text), said("assistant", f"no, {text}")] for text in texts]
    given = 2 * [*rows(opened.name), *(row(talk, number) for number, talk in enumerate(talks))]
    for answering, encode in ((False, opened.encoder.training_example), (True, opened.encoder.prompt_example)):
        assert opened.encoder.nums_tokens(given, answering=answering) == [len(encode(one).input_ids) for one in given]


@pytest.mark.shows("train", "evaluate")
def test_predictions_at_labels_are_transformers_own(opened: Opened) -> None:
    examples = [opened.encoder.training_example(one) for one in rows(opened.name)]
    outputs = opened.backbone(collate(examples, pad_id=opened.encoder.pad_id, padding_side="right"))
    for index, (inputs, example) in enumerate(zip(sent(opened, examples), examples, strict=True)):
        expected = opened.reference.logits(inputs)[:-1][example.labels[1:] != IGNORE]
        torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-5, atol=2e-5)


def test_a_prefix_is_what_its_tokens_in_front_would_be(opened: Opened) -> None:
    examples = [opened.encoder.training_example(one) for one in rows(opened.name)]
    batch = collate(examples, pad_id=opened.encoder.pad_id, padding_side="right")
    tokens = opened.reference.tokenizer("the sky", add_special_tokens=False, return_tensors="pt")["input_ids"]
    prefix = opened.backbone.language_model.get_input_embeddings()(tokens).expand(len(batch), -1, -1)
    with opened.backbone.prefixed(prefix):
        outputs = opened.backbone(batch)
    for index, (inputs, example) in enumerate(zip(sent(opened, examples), examples, strict=True)):
        longer = {**inputs, **{name: in_front(name, inputs[name], tokens) for name in inputs if name in BY_TOKEN}}
        expected = opened.reference.logits(longer)[tokens.shape[1] : -1][example.labels[1:] != IGNORE]
        torch.testing.assert_close(outputs.logits[outputs.rows == index], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.shows("prepare")
def test_cached_features_give_the_same_predictions(opened: Opened) -> None:
    examples = [opened.encoder.training_example(one) for one in rows(opened.name)]
    batch = collate(examples, pad_id=opened.encoder.pad_id, padding_side="right")
    kept = [tuple(features_alone(opened.backbone, picture) for picture in row) for row in batch.pictures]
    # Not to the last bit: these features were computed picture by picture, which takes other kernels.
    found, expected = opened.backbone(replace(batch, pictures=kept)).logits, opened.backbone(batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def test_the_towers_alone_give_the_same_features(opened: Opened) -> None:
    """What encodes pictures on GPUs is loaded without the language model's layers."""
    shown = [each for one in rows(opened.name) for each in opened.encoder.training_example(one).pictures]
    towers = load_backbone(opened.backbone.config, decoder=False)
    whole, alone = (sum(p.numel() for p in each.parameters()) for each in (opened.backbone, towers))
    assert alone < whole
    for found, expected in zip(towers.picture_features(shown), opened.backbone.picture_features(shown), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_pictures_count_and_a_batch_without_any_works(opened: Opened) -> None:
    shown = [one for one in rows(opened.name) if one.image is not None]
    plain = [one for one in rows(opened.name) if one.image is None]
    assert predicted(opened, plain).isfinite().all()
    if opened.name not in tiny.TEXT_ONLY:
        other = row([said("user", picture(40, 61), "what is this"), said("assistant", ANSWERS[0])], 9)
        assert not torch.allclose(predicted(opened, shown[:1]), predicted(opened, [other]), atol=1e-2)


@pytest.mark.shows("evaluate")
def test_greedy_replies_of_a_mixed_batch_are_transformers_row_by_row(opened: Opened) -> None:
    examples = [opened.encoder.prompt_example(one) for one in rows(opened.name)]
    batch = collate(examples, pad_id=opened.encoder.pad_id, padding_side="left")
    replies = opened.backbone.generate(batch, max_new_tokens=8)
    for inputs, found in zip(sent(opened, examples, answering=True), replies, strict=True):
        assert found == opened.reference.reply(inputs, max_new_tokens=8)
    assert opened.backbone.generate(batch, max_new_tokens=8, rows_leave=True, refill=Limits(2)) == replies
    again = opened.backbone.generate(batch, max_new_tokens=8)  # nothing of an earlier batch stays in the model
    assert again == replies


@pytest.mark.shows("evaluate")
def test_options_score_as_transformers_scores_prompt_and_option_row_by_row(opened: Opened) -> None:
    talks = rows(opened.name)
    examples = [opened.encoder.prompt_example(one) for one in talks]
    texts = [["no", "a cat on the mat", "two cats"][number % 2 :] for number in range(len(talks))]
    options = [[opened.encoder.reply_ids(one, text) for text in of] for one, of in zip(talks, texts, strict=True)]
    assert max(len(ids) for of in options for ids in of) > 2
    batch = collate(examples, pad_id=opened.encoder.pad_id, padding_side="left")
    found = opened.backbone.log_likelihoods(batch, options, limits=Limits(4), rows_leave=True)
    for inputs, of, numbers in zip(sent(opened, examples, answering=True), options, found, strict=True):
        for ids, number in zip(of, numbers, strict=True):
            whole = opened.reference.logits(followed(inputs, ids, answer=opened.name == "paligemma"))
            wanted = whole[-len(ids) - 1 : -1].double().log_softmax(dim=-1)[range(len(ids)), ids].sum()
            assert number == pytest.approx(float(wanted), abs=1e-3)


def followed(inputs: dict[str, Tensor], ids: list[int], *, answer: bool) -> dict[str, Tensor]:
    """The conversation with `ids` behind it. `answer`: token types say what is answer, and not what is picture."""
    more = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [int(answer)] * len(ids)}
    return {
        name: torch.cat([value, torch.tensor([more.get(name, [0] * len(ids))])], dim=1) if name in BY_TOKEN else value
        for name, value in inputs.items()
    }


BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def sent(opened: Opened, examples: list[Example], *, answering: bool = False) -> list[dict[str, Tensor]]:
    """The processor's tensors of each row, with the ids of `examples`, which may lack a last line break."""
    made = []
    for messages, example in zip(conversations(opened.name), examples, strict=True):
        inputs = opened.reference.inputs(messages[:-1] if answering else messages, answering=answering)
        ids = example.input_ids[None]
        cut = {name: inputs[name][:, : ids.shape[1]] for name in inputs if name in BY_TOKEN}
        made.append({**inputs, **cut, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return made


def in_front(name: str, values: Tensor, tokens: Tensor) -> Tensor:
    """What stands at each token, with text in front."""
    before = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}.get(name, torch.zeros_like(tokens))
    return torch.cat([before, values], dim=1)


def features_alone(backbone: Backbone, picture: Picture) -> Picture:
    """The picture as it comes from a cache."""
    (features,) = backbone.picture_features([picture])
    kept = {name: picture.tensors[name] for name in backbone.family.kept}
    return replace(picture, tensors={FEATURES: features, **kept})


def predicted(opened: Opened, some: list[Row]) -> Tensor:
    examples = [opened.encoder.training_example(one) for one in some]
    return opened.backbone(collate(examples, pad_id=opened.encoder.pad_id, padding_side="right")).logits


def test_paligemma_answers_one_question_a_row(tmp_path: Path) -> None:
    encoder = build_encoder(BackboneConfig(name=str(tiny.write("paligemma", tmp_path))))
    with pytest.raises(DataError, match=r"row r3 has 2 questions, but backbone .* takes at most 1 question in a row"):
        encoder.training_example(rows("qwen2_vl")[3])


def test_a_text_model_takes_no_pictures(tmp_path: Path) -> None:
    encoder = build_encoder(BackboneConfig(name=str(tiny.write("llama", tmp_path))))
    shown = rows("qwen2_vl")[0]
    with pytest.raises(DataError, match=r"row r0 has 1 picture, but backbone .* takes no pictures; leave the row out"):
        encoder.num_tokens(shown, answering=False)
    with pytest.raises(DataError, match=r"row r0 has 1 picture, but backbone .* takes no pictures; leave the row out"):
        encoder.training_example(shown)


def test_the_page_names_the_supported_types() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "models.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `") and "model_type" not in line]
    assert sorted(name for cell in table for name in re.findall(r"`(\w+)`", cell)) == supported_types()
