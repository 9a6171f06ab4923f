"""Result files of MLLM-CL, TRACE and UCIT: pairing by id and by place, captions as whole files, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import DataError
from components.evaluation.released_files import read_replies
from components.evaluation.rescoring import FileScore, read_annotations, score_file
from components.metrics.captions import SEVEN, java_home
from components.metrics.released.tasks import Mode

CAPTIONS = {
    "annotations": [
        {"image_id": 1, "caption": "a man speaks."},
        {"image_id": 2, "caption": "rain is falling hard on a surface"},
        {"image_id": 1, "caption": "someone speaks."},
        {"image_id": 1, "caption": "a man is speaking while a bird is chirping in the background"},
    ]
}


def scored(folder: Path, task: str, mode: Mode, annotations: Any, replies: str) -> FileScore:
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    (folder / "replies").write_text(replies, encoding="utf-8")
    read = read_annotations(task, folder / "annotations.json", None, None)
    return score_file(task, read, read_replies(folder / "replies"), mode)


def lines(*texts: str) -> str:
    return "".join(json.dumps({"question_id": at, "text": text}) + "\n" for at, text in enumerate(texts, start=1))


def test_mllm_cl_by_id(tmp_path: Path) -> None:
    records = [{"question_id": 2, "answer": "no"}, {"question_id": 1, "answer": "yes"}]
    replies = lines("Yes, it is.", "No")
    assert scored(tmp_path, "mllm-dcl/remote-sensing", "compat", records, replies).correct == 2
    assert scored(tmp_path, "MLLM-DCL/Remote-Sensing", "fixed", records, replies).correct == 1


@pytest.mark.parametrize("form", ["results", "lines"])
def test_trace_by_place(form: str, tmp_path: Path) -> None:
    """20Minuten and ScienceQA need no ids; the released file holds the replies as one list."""
    records = [{"prompt": "p", "answer": "A\nBecause"}, {"prompt": "p", "answer": "B"}]
    texts = ["And so", "b"]
    replies = json.dumps({"eval": {}, "results": texts, "labels": ["x", "y"]}) if form == "results" else lines(*texts)
    assert scored(tmp_path, "trace/scienceqa", "compat", records, replies).correct == 1
    assert scored(tmp_path, "trace/scienceqa", "fixed", records, replies).correct == 1  # the other one
    with pytest.raises(DataError, match="There are 2 replies to 1 records; they are paired by position"):
        scored(tmp_path, "trace/scienceqa", "compat", records[:1], replies)
    with pytest.raises(DataError, match=r'"results" must be a list of replies as texts, given: 3'):
        scored(tmp_path, "trace/fomc", "compat", records, json.dumps({"results": ["x", 3]}))


def test_captions_by_place_and_image_id(tmp_path: Path) -> None:
    replies = lines("a man is speaking", "rain falls")
    fixed = scored(tmp_path, "ucit/flickr30k", "fixed", CAPTIONS, replies)
    assert fixed.samples == 2
    assert 40 < fixed.accuracy < 60
    assert "bleu_1 42.78" in fixed.notes[0]
    if java_home() is not None:
        compat = scored(tmp_path, "ucit/flickr30k", "compat", CAPTIONS, replies)
        named = dict(part.rsplit(" ", 1) for part in compat.notes[0].split(", "))
        assert compat.accuracy == pytest.approx(sum(float(named[name]) for name in SEVEN) / 7, abs=0.01)
    with pytest.raises(DataError, match=r'the list "annotations" of .* must hold captions, given: nothing'):
        scored(tmp_path, "ucit/flickr30k", "fixed", {"images": []}, replies)
    elsewhere = {"annotations": [{"image_id": 7, "caption": "a"}, {"image_id": 8, "caption": "b"}]}
    with pytest.raises(DataError, match="there is no image_id 1 in the annotations"):
        scored(tmp_path, "ucit/flickr30k", "compat", elsewhere, replies)
