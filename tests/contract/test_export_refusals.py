"""Exports that are refused, what bundles answer, and what a card says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from exported import export, replies
from learned_runs import learned_run, told
from toy_tasks import COLOURS, OPPOSITES, Toy, colour_row

from components.core.errors import CheckpointError, ConfigError, DataError, ExportError, LittoralError
from components.exporting import load_bundle
from components.methods import method_config
from components.methods.base import ExportFormat
from pipelines.export import main

# ---- what is refused, and what is left behind --------------------------------------------------------------------


@pytest.mark.parametrize("to", ["peft", "merged", "bundle"])
def test_nothing_is_left_where_the_probe_fails(to: ExportFormat, encoded: list[Toy], tmp_path: Path) -> None:
    run, _, _ = learned_run(tmp_path, "sequential_lora", encoded[:1], updates=0)
    with pytest.raises(ExportError, match="changes no prediction of the backbone, so there is nothing to export"):
        export(run, to, tmp_path / "there" / "out")
    assert [*(tmp_path / "there").iterdir()] == []


def test_what_cannot_be_exported_is_said_in_a_sentence(encoded: list[Toy], tmp_path: Path) -> None:
    run, _, _ = learned_run(tmp_path, "sequential_lora", encoded[:1])
    taken = tmp_path / "taken"
    taken.mkdir()

    def refused(arguments: Sequence[object], error: type[LittoralError], said: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(error, match=said):
            main([str(each) for each in arguments])
        assert sorted(tmp_path.rglob("*")) == before

    new = str(tmp_path / "new")
    refused([tmp_path, "--to", "peft", "--out", new], ConfigError, "is not a run but holds some")
    refused([run / "config.json", "--to", "peft", "--out", new], ConfigError, "is a record, which holds no weights")
    refused([run, "--to", "peft", "--out", taken], ConfigError, "exists and is not replaced")
    refused([run, "--to", "peft", "--out", new, "--task", "opposites"], ConfigError, "it has learned 1 colours")
    refused([run, "--to", "peft", "--out", new, "--task", "2"], ConfigError, "it has learned 1 colours")
    refused([run, "--to", "merged", "--out", new, "--group", "a"], ConfigError, "leave --group out")
    refused([run, "--to", "peft", "--out", new, "--backbone", "./gone"], ConfigError, "not a directory")
    refused([run, "--to", "peft", "--out", run / "config.json" / "x"], ConfigError, "cannot write to")
    state = run / "checkpoints" / "01-colours" / "state.json"
    state.write_text(state.read_text().replace('"backbone": "', '"backbone": "0'))
    refused([run, "--to", "peft", "--out", new], ConfigError, "are not those that run toys was trained on")
    state.unlink()
    refused([run, "--to", "peft", "--out", new], CheckpointError, "not a finished Littoral checkpoint")


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("continual_llava", "peft", "anew for every sample and cannot be exported to peft; give --to bundle"),
        ("moelora", "merged", "cannot be exported to merged; give --to bundle"),
        ("eproj", "peft", "cannot be exported to peft; give --to merged or bundle"),
        ("zero_shot", "bundle", "learns nothing"),
    ],
)
def test_a_format_that_a_method_cannot_give(
    name: str, to: ExportFormat, said: str, pictured: list[Toy], tmp_path: Path
) -> None:
    run, _, _ = learned_run(tmp_path, name, pictured[:1], updates=1)
    with pytest.raises(ConfigError, match=said):
        export(run, to, tmp_path / "out")


# ---- bundles and cards -------------------------------------------------------------------------------------------


def test_a_bundle_answers_a_picture_and_a_question(encoded: list[Toy], tmp_path: Path) -> None:
    run, method, backbone = learned_run(tmp_path, "continual_llava", encoded, updates=12)
    folder = export(run, "bundle", tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "method.safetensors", "state.json"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # others than this user may read it, too
    bundle = load_bundle(folder)
    assert (bundle.stream, bundle.tasks, bundle.method.tasks) == ("toys", ["colours", "opposites"], method.tasks)
    assert str(tmp_path) not in (folder / "state.json").read_text()
    expected = replies(method, backbone, encoded[0])
    assert len(set(expected)) > 1
    for colour, reply in zip(COLOURS, expected, strict=True):
        picture = colour_row(colour).image
        assert bundle.answer(f"What colour fills the {colour} picture?", picture, max_new_tokens=4).text == reply
    (tmp_path / "red.png").write_bytes(colour_row("red").image or b"")
    question = "What colour fills the red picture?"
    assert bundle.answer(question, tmp_path / "red.png", max_new_tokens=4).text == expected[0]
    for word, reply in zip(OPPOSITES, replies(method, backbone, encoded[1]), strict=True):
        assert bundle.answer(f"Name the opposite of {word}.", max_new_tokens=4).text == reply
    with pytest.raises(ConfigError, match="finds the task by itself"):
        bundle.answer("Name the opposite of up.", task="opposites")
    with pytest.raises(DataError, match=r"nosuch\.png cannot be read"):
        bundle.answer(question, tmp_path / "nosuch.png")


def test_a_bundle_of_a_method_that_must_be_told(encoded: list[Toy], tmp_path: Path) -> None:
    toys = [told(toy, toy.info.name) for toy in encoded]
    run, method, backbone = learned_run(tmp_path, "individual", toys, updates=12)
    bundle = load_bundle(export(run, "bundle", tmp_path / "out"))
    for task in ("colours", "opposites"):
        answers = [
            bundle.answer(f"Name the opposite of {word}.", max_new_tokens=4, task=task).text for word in OPPOSITES
        ]
        assert answers == replies(method, backbone, told(encoded[1], task))
    with pytest.raises(ConfigError, match="give one of colours, opposites"):
        bundle.answer("Name the opposite of up.")
    with pytest.raises(CheckpointError, match="is not a bundle"):
        load_bundle(run / "checkpoints" / "01-colours")


def test_the_card_names_what_a_reader_must_know(encoded: list[Toy], tmp_path: Path) -> None:
    run, _, _ = learned_run(tmp_path, "o_lora", encoded)
    card = (export(run, "peft", tmp_path / "out", task="colours") / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "peft"\n')
    assert 'license: "apache-2.0"' in card
    assert "| `colours` | 60.0 | 10.0 |" in card
    assert "80.0" not in card  # of a later row
    assert "1. `colours`\n\n" in card
    assert "Not learned here, though the stream has them: opposites." in card
    assert "licences of the data | not stated" in card
    assert "rank | 8 |" in card


def test_every_format_is_shown_for_every_method() -> None:
    assert method_config("o_lora").tiny().export_formats == ("peft", "merged", "bundle")
    assert method_config("eproj").tiny().export_formats == ("merged", "bundle")
    assert method_config("moelora").tiny().export_formats == ("bundle",)
    assert method_config("zero_shot").tiny().export_formats == ()
