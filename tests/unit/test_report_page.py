"""The page of a preparation's report: closed against what data may hold, readable, small; and what stands in it."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared
from components.data.quality.checks import EXPLANATIONS
from components.data.quality.overlaps import Leak, Overlap, Shared
from components.data.quality.report import FileReport, ImportReport
from components.data.quality.report_page import PAIRS, pairs_of, pictures_of, write_page
from components.data.quality.survey import SAMPLES, Range, StreamSurvey, range_of, survey
from components.data.quality.thumbnails import LARGEST, SIDE, Album

DATA = Path(__file__).resolve().parents[2] / "components" / "data"
HOSTILE = "<script>alert(1)</script> \" onerror='x' <img src=http://example.com/a.png> {{ 7 * 7 }} \x1b[2J \u202e"
ROOM = 1_000_000


class Page(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(width: int, height: int) -> bytes:
    return encoded(Image.effect_noise((width, height), 60))


@pytest.fixture
def prepared(tmp_path: Path) -> ImportReport:
    """A user's stream of 5 + 1 rows, four with pictures, two of them equal; a sixth training row is broken."""
    for name, data in {"a.png": noise(300, 20), "b.png": noise(40, 60), "c.png": noise(10, 10)}.items():
        (tmp_path / name).write_bytes(data)

    def item(key: str, answer: str, image: str | None = None) -> dict[str, object]:
        turns = [{"from": "human", "value": f"{HOSTILE} {key}"}, {"from": "gpt", "value": answer}]
        return {"id": key, "image": image, "conversations": turns}

    train = [item("1", "a", "a.png"), item("2", "ab", "b.png"), item("3", HOSTILE, "a.png"), item("4", "abcd")]
    train += [item("5", "abc"), item("<b>6</b>", "x", "<i>.png")]
    (tmp_path / "train.json").write_text(json.dumps(train))
    (tmp_path / "test.json").write_text(json.dumps([item("7", "abc", "c.png")]))
    (tmp_path / "s.toml").write_text(
        'name = "s"\n[[task]]\nname = "t"\ntrain = "train.json"\ntest = "test.json"\nimages = "."\n'
        'metric = "exact"\nmax_new_tokens = 4\n'
    )
    return import_stream(read_stream_file(tmp_path / "s.toml"), tmp_path / "out", max_broken=0.5)


@pytest.fixture
def seen(prepared: ImportReport) -> StreamSurvey:
    return survey(open_prepared(prepared.out_dir).splits, {"t test": {"7"}})


@pytest.fixture
def page(prepared: ImportReport, seen: StreamSurvey, tmp_path: Path) -> str:
    counts = {"rows": 1, "pictured": 1, "pictures": 1, "questions": 1, "repeats": 0, "near_blank": 0}
    overlap = Overlap(first="t train", second="t test", examples=(("1", "7"),), **counts)
    shared = Shared(pairs=(overlap,), leaks=(Leak(task="t", **counts),))
    write_page(tmp_path / "page.html", prepared, shared, seen)
    return (tmp_path / "page.html").read_text()


def test_nothing_in_the_data_becomes_markup(page: str) -> None:
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7 * 7 }}" in page
    assert "\\x1b[2J \\u202e" in page
    assert not {"\x1b", "\u202e"} & set(page)
    names = {tag for tag, _ in Page(page).tags}
    assert names & {"script", "iframe", "object", "link", "form", "b", "i"} == set()
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    read = Page(page)
    for tag, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), tag
            if name == "href":
                assert (value or "").startswith("#")
            if name in ("src", "srcset", "action"):
                assert (value or "").startswith("data:image/jpeg;base64,")
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_can_be_read_aloud(page: str) -> None:
    read = Page(page)
    assert read.all("html") == [{"lang": "en"}]
    assert len(read.all("h1")) == 1
    assert all(heading.get("scope") for heading in read.all("th"))
    assert len(read.all("caption")) == len(read.all("table")) == 6
    pictures = read.all("img")
    assert pictures
    assert all((picture.get("alt") or "").startswith("Picture of row ") for picture in pictures)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(link["href"] or "")[1:] for link in read.all("a")} <= set(ids)


def test_pictures_are_small_copies(page: str, tmp_path: Path) -> None:
    raw = base64.b64encode((tmp_path / "c.png").read_bytes()).decode()
    assert raw[:200] not in page
    for picture in Page(page).all("img"):
        data = base64.b64decode((picture["src"] or "").partition(",")[2])
        copy = Image.open(io.BytesIO(data))
        assert (copy.format, copy.mode, max(copy.size) <= SIDE) == ("JPEG", "RGB", True)
        assert (str(copy.width), str(copy.height)) == (picture["width"], picture["height"])


def test_the_page_tells_problems_terms_and_pairs(page: str, prepared: ImportReport) -> None:
    assert "1 problem in 1 split: 6 rows in 2 splits were written, 1 row was left out." in page
    assert f"{prepared.files[0].file} row 6: the image &lt;i&gt;.png is missing" in page
    assert "<h3>missing image: 1 row left out</h3>" in page
    assert "not stated" in page
    assert page.count('<div class="card pair">') == 1
    assert "Picture not kept" in page  # nobody asked for that of row 1


def test_a_page_of_ones_own_files_speaks_of_no_release(page: str) -> None:
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', page)
    assert "published" not in heads
    assert "new ids" not in heads
    assert "release" not in page
    assert "benchmark" not in page


def test_every_cell_says_what_it_is_where_a_phone_shows_a_row_as_a_card(page: str) -> None:
    """The head of its column, which a card does not show."""
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', table)
        for line in re.findall(r'<tr><th scope="row">.*?</tr>', table, re.DOTALL):
            assert re.findall(r'data-label="([^"]*)"', line) == heads[1:]


def test_a_survey_by_hand(seen: StreamSurvey) -> None:
    train, test = seen.splits
    assert train.pictures is not None
    assert (train.pictures.rows, train.pictures.distinct, train.pictures.large) == (3, 2, 0)
    assert train.pictures.width == Range(smallest=40, median=300, largest=300)
    assert train.pictures.height == Range(smallest=20, median=20, largest=60)
    assert train.answer_characters == Range(smallest=1, median=3, largest=len(HOSTILE))
    assert (len(train.samples), len(test.samples)) == (SAMPLES, 1)
    assert set(seen.pictures) == {("t test", "7")}
    assert range_of([4, 1, 3, 2]) == Range(smallest=1, median=2, largest=4)


def test_samples_are_the_same_at_every_call_and_follow_the_seed(prepared: ImportReport) -> None:
    stream = open_prepared(prepared.out_dir)
    drawn = [
        tuple(sample.sample_id for sample in survey(stream.splits, {}, seed=seed).splits[0].samples)
        for seed in (0, 0, 1, 2, 3, 4)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_the_verdicts(tmp_path: Path) -> None:
    """Clean is only what was looked at and shares nothing."""

    def verdict(file: FileReport, refused: str | None = None, leaks: tuple[str, ...] | None = ()) -> tuple[str, str]:
        report = ImportReport(stream="s", out_dir=tmp_path, files=(file,), refused=refused, leaks=leaks)
        return report.state, report.verdict

    file = FileReport(task="t", split="train", file="f", rows=1200, kept=1200)
    assert verdict(file) == ("clean", "Clean: 1,200 rows in 1 split were written, nothing is wrong.")
    state, sentence = verdict(file, leaks=None)
    assert (state, "Clean" in sentence, "not checked" in sentence) == ("whole", False, True)
    state, sentence = verdict(file, leaks=("t: 16 of 16 test rows look like a training picture",))
    assert (state, sentence[:39], "Clean" in sentence) == ("shared", "Test rows resemble training rows: 1,200", False)
    file.add("missing image", 3, "gone")
    assert verdict(file)[0] == "problems"
    assert verdict(file, "too much") == ("refused", "Refused, nothing was written: too much.")


def test_one_pair_of_every_overlap_comes_before_a_second_of_any() -> None:
    found = [
        Overlap(
            first="a",
            second=str(at),
            rows=9,
            pictured=9,
            pictures=3,
            questions=0,
            repeats=0,
            near_blank=0,
            examples=(("1", "2"), ("3", "4")),
        )
        for at in range(8)
    ]
    pairs = pairs_of(found)
    assert len(pairs) == PAIRS
    assert [first for first, _ in pairs] == [("a", "1")] * 8 + [("a", "3")] * 4
    assert pictures_of(pairs)["a"] == {"1", "3"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_of_pictures_has_a_thumbnail(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "F", "I;16") else "PNG"
    thumbnail = Album(room=ROOM).thumbnail(encoded(Image.new(mode, (500, 100)), kind))
    assert (thumbnail.missing, thumbnail.width, thumbnail.height) == ("", SIDE, round(SIDE / 5))


def test_what_is_see_through_is_white() -> None:
    thumbnail = Album(room=ROOM).thumbnail(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))))
    copy = Image.open(io.BytesIO(base64.b64decode(thumbnail.uri.partition(",")[2])))
    assert copy.getpixel((4, 4)) == (255, 255, 255)


def _promised(width: int, height: int) -> bytes:
    """The head of a PNG that promises a size, without a picture behind it."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pictures_that_would_fill_the_memory_are_not_decoded() -> None:
    album = Album(room=ROOM)
    assert "too large to show" in album.thumbnail(_promised(LARGEST // 1000 + 1, 1000)).missing
    assert "cannot be decoded" in album.thumbnail(_promised(100_000, 100_000)).missing
    assert "cannot be decoded" in album.thumbnail(b"no picture").missing


def test_an_album_stops_when_its_room_is_full() -> None:
    album = Album(room=20_000)
    thumbnails = [album.thumbnail(noise(SIDE, SIDE)) for _ in range(3)]
    assert thumbnails[0].uri
    assert thumbnails[-1].missing == "left out to keep the page small"


def _kinds(path: Path) -> set[str]:
    """Kinds of faults that a source file can tell, where it builds an `ItemError` or a `Problem`, or adds one."""
    found: set[str] = set()
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [word.value for word in call.keywords if word.arg == "kind"] if name == "Problem" else call.args[:1]
        if name in ("ItemError", "add", "Problem"):
            found |= {one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return found


def test_every_kind_of_fault_is_explained() -> None:
    kinds = set().union(*(_kinds(path) for path in DATA.rglob("*.py")))
    assert {"leaked", "no rows", "not UTF-8", "duplicate picture"} <= kinds
    assert kinds - set(EXPLANATIONS) == set(), "say in components/data/quality/checks.py what they mean and what to do"
