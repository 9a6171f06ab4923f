"""Rows as token ids, labels and pixels, held against the processor's own."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.core.errors import ConfigError, DataError
from components.data.batch import IGNORE, collate
from components.data.formats.pictures import open_image
from components.models.config import BackboneConfig
from components.models.encoding import Encoder, Prepared, build_encoder
from components.models.families.base import FEATURES
from tests.unit.llava_checkpoint import llama_like_tokenizer, write_checkpoint
from tests.unit.sample_rows import picture, row

RED = picture((250, 0, 0))


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def llava(llava_dir: Path) -> Encoder:
    return build_encoder(BackboneConfig(name=str(llava_dir)))


@pytest.fixture(scope="module")
def pocket() -> Encoder:
    return build_encoder(BackboneConfig(name="pocket"))


# LLaVA-1.5's conversation "v1" written out by hand, independent of components/models/templates.py: conv_vicuna_v1 in
# haotian-liu/LLaVA, llava/conversation.py.
LLAVA_TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\nWhat is this? ASSISTANT: A red ball.</s>"
    "USER: Is it big? ASSISTANT: No, the ball is small.</s>"
)
LLAVA_ROW = row("<image>\nWhat is this?", "A red ball.", "Is it big?", "No, the ball is small.", image=RED)


def test_llava_template_token_for_token(llava: Encoder) -> None:
    assert llava.text(LLAVA_ROW, answering=False) == LLAVA_TEXT
    tokenizer = llama_like_tokenizer()
    assert llava.family.layout(28, 28).runs == (4,)  # 28 px at patches of 14
    expected = tokenizer(LLAVA_TEXT.replace("<image>", "<image>" * 4))["input_ids"]
    example = llava.training_example(LLAVA_ROW)
    assert example.input_ids.tolist() == expected
    assert expected[0] == tokenizer.bos_token_id


def test_llava_labels_are_the_answers_and_their_ends(llava: Encoder) -> None:
    tokenizer = llama_like_tokenizer()
    example = llava.training_example(LLAVA_ROW)
    supervised = example.labels != IGNORE
    assert torch.equal(example.labels[supervised], example.input_ids[supervised])
    plain = [
        token for answer in ("A red ball.</s>", "No, the ball is small.</s>") for token in tokenizer.encode(answer)[1:]
    ]
    assert example.labels[supervised].tolist() == plain


def test_llava_prompt_is_the_beginning_of_the_training_row(llava: Encoder) -> None:
    prompt, whole = llava.prompt_example(LLAVA_ROW), llava.training_example(LLAVA_ROW)
    size = len(prompt.input_ids)
    assert llava.text(LLAVA_ROW, answering=True).endswith("USER: Is it big? ASSISTANT:")
    assert torch.equal(prompt.input_ids, whole.input_ids[:size])
    assert int(whole.labels[size]) != IGNORE  # the very next token is the first one supervised in the last answer
    assert int(whole.labels[size - 1]) == IGNORE
    assert bool((prompt.labels == IGNORE).all())


def test_chatml_is_short_and_labels_only_answers(pocket: Encoder) -> None:
    r = row("<image>\nWhat is this?", "red", "And now?", "blue square", image=RED)
    assert pocket.text(r, answering=False) == (
        "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\nblue square<|im_end|>"
    )
    example = pocket.training_example(r)
    ends = int((example.labels == pocket.pad_id).sum())
    assert ends == 2  # pad equals eos here, and both answers keep theirs
    batch = collate([example, pocket.training_example(row("Hi", "yes"))], pad_id=pocket.pad_id, padding_side="right")
    assert int((batch.labels[1] == pocket.pad_id).sum()) == 1
    assert int(batch.labels[1][-1]) == IGNORE


text = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=30).filter(
    lambda value: "<" not in value
)


@settings(max_examples=60, deadline=None)
@given(questions=st.lists(st.tuples(text, text), min_size=1, max_size=3))
def test_supervised_ids_decode_to_the_answers(questions: list[tuple[str, str]]) -> None:
    encoder = Encoder(BackboneConfig(name="pocket"))
    example = encoder.training_example(row(*[part for pair in questions for part in pair]))
    supervised = example.labels[example.labels != IGNORE].tolist()
    answers: list[list[int]] = [[]]
    for token in supervised:
        if token == encoder.pad_id:
            answers.append([])
        else:
            answers[-1].append(token)
    assert [encoder.decode(ids) for ids in answers[:-1]] == [answer.strip() for _, answer in questions]
    assert answers[-1] == []


def test_encoder_travels_as_its_configuration(pocket: Encoder) -> None:
    data = pickle.dumps(pocket)
    assert len(data) < 1000
    again = pickle.loads(data)  # noqa: S301  (our own bytes, one line above)
    assert again.config == pocket.config
    r = row("<image>\nWhat?", "red", image=RED)
    assert torch.equal(again.training_example(r).input_ids, pocket.training_example(r).input_ids)


def test_cached_features_stand_in_for_pixels(pocket: Encoder) -> None:
    r = row("<image>\nWhat?", "red", image=b"never decoded")
    layout = pocket.family.layout(32, 32)
    tensors = {FEATURES: torch.zeros(sum(layout.runs), 48)}
    example = pocket.training_example(r, pictures=[Prepared(layout=layout, tensors=tensors)])
    assert [shown.tensors for shown in example.pictures] == [tensors]


@pytest.mark.parametrize(
    ("texts", "image", "message"),
    [
        (("What?", "red"), RED, "0 picture placeholders for 1 pictures"),
        (("<image>\nWhat <image>?", "red"), RED, "2 picture placeholders for 1 pictures"),
        (("<image>\nWhat?", "red"), None, "1 picture placeholders for 0 pictures"),
        (("What?", "  "), None, "turn 2 is empty"),
        (("What?", "red", "And?"), None, "ends with an answer"),
        (("<image>\nWhat?", "red"), RED[:60], "cannot be decoded"),
        (("<image>\nWhat?", "red"), b"not a picture", "cannot be decoded"),
    ],
)
def test_bad_rows_are_named(pocket: Encoder, texts: tuple[str, ...], image: bytes | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        pocket.training_example(row(*texts, image=image, sample_id="bad-7"))
    assert "bad-7" in str(caught.value)


def test_a_row_with_two_answers_in_a_row_is_refused(pocket: Encoder) -> None:
    r = row("What?", "red", "blue", "green")
    swapped = type(r)(
        **{**{name: getattr(r, name) for name in r.__slots__}, "turns": (r.turns[0], r.turns[1], r.turns[1])}
    )
    with pytest.raises(DataError, match="turn 3 is by 'gpt'"):
        pocket.training_example(swapped)


def test_too_long_rows_are_refused_not_cut(llava_dir: Path) -> None:
    encoder = Encoder(BackboneConfig(name=str(llava_dir), max_length=50))
    with pytest.raises(DataError, match=r"r1 takes \d+ tokens.*max_length = 50"):
        encoder.training_example(LLAVA_ROW)


def test_unknown_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, vicuna_v1, llava_v1, chatml, mistral, paligemma, chat"):
        build_encoder(BackboneConfig(name="pocket", template="alpaca"))


def test_a_chat_template_without_an_end_is_refused(llava_dir: Path) -> None:
    with pytest.raises(ConfigError, match="does not end answers"):
        build_encoder(BackboneConfig(name=str(llava_dir), template="chat"))


def test_a_models_own_chat_template_is_followed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "own")
    template = folder / "chat_template.jinja"
    changed = template.read_text().replace(
        "part['text'] + ' '", "part['text'] + ('</s>' if message['role'] == 'assistant' else ' ')"
    )
    template.write_text(changed)
    encoder = build_encoder(BackboneConfig(name=str(folder), template="chat"))
    example = encoder.training_example(LLAVA_ROW)
    text = (
        "USER: <image>\nWhat is this? ASSISTANT: A red ball.</s>USER: Is it big? ASSISTANT: No, the ball is small.</s>"
    )
    tokenizer = llama_like_tokenizer()
    assert example.input_ids.tolist() == tokenizer(text.replace("<image>", "<image>" * 4))["input_ids"]
    ends = [encoder.decode(example.labels[example.labels != IGNORE]).count(word) for word in ("ball", "small", "USER")]
    assert ends == [2, 1, 0]


def test_pictures_become_rgb_on_white() -> None:
    clear = open_image(picture((255, 0, 0, 0), mode="RGBA"), sample_id="x")
    assert clear.mode == "RGB"
    assert clear.getpixel((3, 3)) == (255, 255, 255)
    file = io.BytesIO()
    Image.new("I;16", (4, 4), 32768).save(file, "PNG")
    assert open_image(file.getvalue(), sample_id="x").getpixel((0, 0)) == (128, 128, 128)


def test_long_pictures_are_padded_with_the_mean_colour(pocket: Encoder) -> None:
    wide = row("<image>\nWhat?", "red", image=picture((255, 255, 255), size=(40, 20)))
    pixels = pocket.prepared(wide)[0].tensors["pixel_values"][0]
    assert pixels.shape == (3, 64, 64)
    assert float(pixels[:, 2, 32].abs().max()) < 0.05  # the mean colour is about zero after normalising
    assert float(pixels[:, 32, 32].min()) > 1.0
    cropped = Encoder(BackboneConfig(name="pocket", pad_to_square=False)).prepared(wide)[0].tensors["pixel_values"]
    assert float(cropped.min()) > 1.0
