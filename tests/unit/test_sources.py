"""A user's data in every format becomes the same rows, and what is wrong in it is named with file and row."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_trees import picture, talk

from components.core.errors import ConfigError, DataError
from components.core.location import here
from components.data.formats.sources import open_source
from components.data.formats.storage import matches
from components.data.importing import import_stream, read_stream_file
from components.data.prepared import open_prepared
from components.data.quality.report import ImportReport
from components.data.rows import Row

NAMES = ("tea", "rice", "salt")
Item = dict[str, object]


def items() -> list[Item]:
    return [
        {"id": name, "image": f"{name}.png", "conversations": talk("<image>\nWhat is sold?", name)} for name in NAMES
    ]


def packed(item: Item) -> Item:
    """The picture inside, as Hugging Face's tables hold it; the path is where it came from."""
    return {**item, "image": {"bytes": picture(str(item["image"])), "path": f"/home/somebody/{item['image']}"}}


def write_saved(folder: Path, rows: list[Item]) -> None:
    """What `save_to_disk` leaves: Arrow streams and two JSON files."""
    folder.mkdir(parents=True)
    files = [f"data-0000{at}-of-00002.arrow" for at in range(2)]
    for name, part in zip(files, (rows[:2], rows[2:]), strict=True):
        table = pa.Table.from_pylist(part)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text("{}")


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def sample(item: Item) -> list[tuple[str, bytes]]:
    key = f"shop/{item['id']}"
    return [(f"{key}.json", json.dumps(item).encode()), (f"{key}.png", picture(str(item["image"])))]


def as_lists(root: Path) -> str:
    (root / "images").mkdir()
    for name in NAMES:
        (root / "images" / f"{name}.png").write_bytes(picture(f"{name}.png"))
    (root / "train.json").write_text(json.dumps(items()))
    return "train.json"


def as_parquet_folder(root: Path) -> str:
    (root / "parts").mkdir()
    for at, part in enumerate((items()[:2], items()[2:])):
        pq.write_table(pa.Table.from_pylist([packed(item) for item in part]), root / "parts" / f"train-{at}.parquet")
    return "parts"


def as_parquet_pattern(root: Path) -> str:
    as_parquet_folder(root)
    return "parts/train-*.parquet"


def as_plain_bytes(root: Path) -> str:
    rows = [{**item, "image": picture(str(item["image"])), "embedding": [0.5] * 9} for item in items()]
    pq.write_table(pa.Table.from_pylist(rows), root / "table")  # known by its first bytes
    return "table"


def as_struct_of_lists(root: Path) -> str:
    rows = [
        {**packed(item), "conversations": {"from": ["human", "gpt"], "value": ["<image>\nWhat is sold?", item["id"]]}}
        for item in items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "train.parquet")
    return "train.parquet"


def as_saved(root: Path) -> str:
    write_saved(root / "saved" / "train", [packed(item) for item in items()])
    (root / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return "saved"


def as_tars(root: Path) -> str:
    for at, part in enumerate((items()[:2], items()[2:])):
        write_tar(root / f"shop-00{at}.tar", [member for item in part for member in sample(item)])
    return "shop-{000..001}.tar"


def as_own_schema(root: Path) -> str:
    as_lists(root)
    imported(root, root / "first", "train.json", 'images = "images"')
    return "first/shop/train"


def stream_file(root: Path, train: str, *more: str) -> Path:
    (root / "test.jsonl").write_text(json.dumps({"id": "e", "conversations": talk("Is tea a drink?", "yes")}))
    if "instruction" in "".join(more) or "format" in "".join(more):  # they say something of the test file, too
        pq.write_table(pa.Table.from_pylist([{"id": "e", "conversations": talk("Tea?", "yes")}]), root / "test.jsonl")
    lines = ['name = "mine"', "[[task]]", 'name = "shop"', f'train = "{train}"', 'test = "test.jsonl"']
    path = root / "stream.toml"
    path.write_text("\n".join([*lines, 'metric = "exact"', "max_new_tokens = 16", *more]) + "\n")
    return path


def imported(root: Path, out: Path, train: str, *more: str, max_broken: float = 0.0) -> ImportReport:
    return import_stream(read_stream_file(stream_file(root, train, *more)), out, max_broken=max_broken)


def rows_of(out: Path) -> list[Row]:
    return list(open_prepared(out).tasks[0].train.rows())


@pytest.mark.parametrize(
    "written",
    [as_lists, as_parquet_folder, as_parquet_pattern, as_plain_bytes, as_struct_of_lists, as_saved, as_tars,
     as_own_schema],
)  # fmt: skip
def test_every_format_holds_the_same_rows(tmp_path: Path, written: Callable[[Path], str]) -> None:
    train = written(tmp_path)
    more = ['images = "images"'] if written is as_lists else []
    report = imported(tmp_path, tmp_path / "out", train, *more)
    assert report.refused is None
    rows = rows_of(tmp_path / "out")
    assert [(row.sample_id, row.answers, row.width) for row in rows] == [(name, (name,), 12) for name in NAMES]
    assert [row.turns[0].text for row in rows] == ["<image>\nWhat is sold?"] * 3
    assert [row.image for row in rows] == [picture(f"{name}.png") for name in NAMES]


def test_rows_without_an_id_are_numbered_through_all_files(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for at in range(2):
        rows = [{"messages": [{"role": "user", "content": f"Which {at}?"}, {"role": "assistant", "content": "it"}]}] * 2
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parts" / f"{at}.parquet")
    assert imported(tmp_path, tmp_path / "out", "parts").refused is None
    assert [row.sample_id for row in rows_of(tmp_path / "out")] == ["row-1", "row-2", "row-3", "row-4"]


@pytest.mark.parametrize("ending", ["parquet", "tar"])
@pytest.mark.parametrize(
    ("train", "test"),
    [("train-00000-of-00001", "test-00000-of-00001"), ("shop.training", "shop_VAL"), ("train", "eval")],
)
def test_files_of_several_splits_in_one_folder_are_told_apart(
    tmp_path: Path, train: str, test: str, ending: str
) -> None:
    """As the Hub has them: reading all of them for both splits would train on the test rows."""
    for name, item in zip((train, test), items(), strict=False):
        path = tmp_path / "data" / f"{name}.{ending}"
        write_tar(path, sample(item))
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist([packed(item)]), path)
    if "VAL" in test:
        with pytest.raises(DataError, match="holds files of train, validation and none of 'test'"):
            open_source(here(tmp_path / "data"), "test")
        return
    for split, name in (("train", train), ("test", test)):
        assert [file.name for file in open_source(here(tmp_path / "data"), split).files] == [f"{name}.{ending}"]
    (tmp_path / "data" / f"more.{ending}").touch()
    with pytest.raises(DataError, match=rf"and more\.{ending}, whose name tells no split"):
        open_source(here(tmp_path / "data"), "train")


def test_a_pattern_names_files_of_every_number_and_none_that_are_hidden(tmp_path: Path) -> None:
    for name in ("a-0-x.jsonl", "a-0-y.jsonl", "a-2-x.jsonl", ".a-1-x.jsonl", "._a-0-x.jsonl"):
        (tmp_path / name).write_text(json.dumps({"id": name, "conversations": talk("Tea?", "yes")}))
    assert [file.name for file in matches(here(tmp_path / "*.jsonl"))] == ["a-0-x.jsonl", "a-0-y.jsonl", "a-2-x.jsonl"]
    assert [file.name for file in matches(here(tmp_path / ".a*.jsonl"))] == [".a-1-x.jsonl"]
    with pytest.raises(DataError, match=r"a-1-\*\.jsonl is not a file"):
        matches(here(tmp_path / "a-{0..2}-*.jsonl"))


def test_a_missing_shard_is_missed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for at in (0, 2):
        pq.write_table(pa.Table.from_pylist([packed(items()[at])]), tmp_path / f"data/train-0000{at}-of-00003.parquet")
    for train in ("data", "data/*.parquet"):
        with pytest.raises(DataError, match=r"holds 2 of the 3 files train-\*-of-00003, not 00001; get the rest"):
            imported(tmp_path, tmp_path / "out", train)
    assert imported(tmp_path, tmp_path / "out", "data/train-00002-of-00003.parquet").files[0].kept == 1


def test_a_broken_row_is_named_with_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    broken = {**packed(items()[1]), "image": {"bytes": b"no picture", "path": None}}
    for at, rows in enumerate(([packed(items()[0])], [packed(items()[2]), broken, packed(items()[0])])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parts" / f"{at}.parquet")
    report = imported(tmp_path, tmp_path / "out", "parts")
    second = str(tmp_path / "parts" / "1.parquet")
    assert [(one.file, one.row, one.kind) for one in report.problems] == [
        (second, 2, "broken image"),
        (second, 3, "duplicate id"),
    ]
    assert "row 1 of 0.parquet" in report.problems[1].detail
    assert f"the first: {second} row 2: " in str(report.refused)


def test_a_picture_named_in_a_table_stays_below_its_folder(tmp_path: Path) -> None:
    as_lists(tmp_path)
    paths = ("tea.png", "../x", "/x")
    rows = [{**item, "image": {"bytes": None, "path": path}} for item, path in zip(items(), paths, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    report = imported(tmp_path, tmp_path / "out", "train.parquet", 'images = "images"', max_broken=0.9)
    assert [problem.kind for problem in report.problems] == ["image outside folder"] * 2
    assert [row.sample_id for row in rows_of(tmp_path / "out")] == ["tea"]


def test_answers_alone_are_asked_for_with_the_instruction(tmp_path: Path) -> None:
    members = [(f"{name}.{ending}", data) for name in NAMES for ending, data in
               (("jpg", picture(f"{name}.jpg")), ("txt", f"{name}\n".encode()), ("cls", b"3"))]  # fmt: skip
    write_tar(tmp_path / "shop.tar", members)
    write_tar(tmp_path / "test.tar", members[:2])
    toml = stream_file(tmp_path, "shop.tar", 'instruction = "Name it."')
    toml.write_text(toml.read_text().replace("test.jsonl", "test.tar"))
    assert import_stream(read_stream_file(toml), tmp_path / "out").refused is None
    rows = rows_of(tmp_path / "out")
    assert [(row.sample_id, row.answers) for row in rows] == [(f"shop/{name}", (name,)) for name in NAMES]
    assert rows[0].turns[0].text == "<image>\nName it."


def test_every_fault_in_a_tar_is_named(tmp_path: Path) -> None:
    tea, rice, salt = (sample(item) for item in items())
    members = [*tea, rice[1], ("shop/salt.json", b"{"), salt[1], ("up/../../x.json", tea[0][1]),
               ("twice.json", tea[0][1]), ("twice.png", tea[1][1]), ("twice.jpg", tea[1][1]),
               ("words.txt", b"tea"), ("list.json", b"[]")]  # fmt: skip
    write_tar(tmp_path / "shop.tar", members)
    with tarfile.open(tmp_path / "shop.tar", "a") as archive:
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    report = imported(tmp_path, tmp_path / "out", "shop.tar", max_broken=0.95)
    assert [(problem.row, problem.kind) for problem in report.problems] == [
        (2, "missing field"),
        (3, "broken JSON"),
        (4, "path outside"),
        (5, "too many images"),
        (6, "no instruction"),
        (7, "not an object"),
        (8, "no plain file"),
    ]
    assert [row.sample_id for row in rows_of(tmp_path / "out")] == ["tea"]


def between(whole: bytes) -> bytes:
    return whole[: 2 * 1024]  # two members of one block each


def in_a_header(whole: bytes) -> bytes:
    return whole[: 2 * 1024 + 100]


def damaged(whole: bytes) -> bytes:
    return whole[: 2 * 1024] + b"?" * 512 + whole[2 * 1024 + 512 :]


def twice(whole: bytes) -> bytes:
    return whole + whole


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (between, "it breaks off after 2,048 bytes"),
        (in_a_header, "what follows byte 2,048 is no member"),
        (damaged, "what follows byte 2,048 is no member"),
        (twice, "or several were put together"),
    ],
)
@pytest.mark.parametrize("packed_by", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_samples_behind_a_tars_fault_are_never_passed_over(
    tmp_path: Path, spoiled: Callable[[bytes], bytes], words: str, packed_by: Callable[[bytes], bytes]
) -> None:
    """tarfile takes each of these for the end of the archive."""
    texts = [
        (f"{name}.json", json.dumps({**item, "image": None}).encode())
        for name, item in zip("abc", items(), strict=True)
    ]
    write_tar(tmp_path / "whole.tar", texts)
    path = tmp_path / ("shop.tar" if packed_by is bytes else "shop.tar.gz")
    whole = (tmp_path / "whole.tar").read_bytes()
    path.write_bytes(packed_by(whole))
    assert len(list(open_source(here(path), "train").read().items())) == 3
    path.write_bytes(packed_by(spoiled(whole)))
    with pytest.raises(DataError, match=f"not a whole tar archive .*{words}"):
        list(open_source(here(path), "train").read().items())


@pytest.mark.parametrize(
    ("train", "more", "words"),
    [
        ("none.parquet", (), "none.parquet is not a file or folder"),
        ("part-{0..2}.tar", (), r"part-0\.tar is not a file"),
        ("*.tar", (), r"\*\.tar is not a file"),
        ("empty", (), "holds no Parquet files, tar shards or saved dataset"),
        ("both", (), "holds parquet and webdataset; say which"),
        ("words", (), "of no known format; say which with format: json, parquet"),
        ("rows.CSV", (), r"rows\.CSV is a table that is not read; write it as Parquet"),
        ("saved", (), "has the splits test, validation and no 'train'"),
        ("climbs", (), r"names the file '\.\./x\.arrow'"),
        ("words", ('format = "csv"',), "unknown format 'csv'; allowed are json"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, train: str, more: tuple[str, ...], words: str) -> None:
    for folder in ("empty", "both", "saved", "climbs"):
        (tmp_path / folder).mkdir()
    for name in ("both/a.tar", "both/a.parquet", "words", "rows.CSV"):
        (tmp_path / name).write_text("words")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["test", "validation"]}')
    (tmp_path / "climbs" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises((DataError, ConfigError), match=words):
        read_stream_file(stream_file(tmp_path, train, *more))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.parquet", "not a whole Parquet"),
        ("a.arrow", "not a whole Arrow"),
        ("a.tar", "not a whole tar"),
        ("a.jsonl.gz", "cannot be read"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and nothing of use" * 50)
    with pytest.raises(DataError, match=words):
        imported(tmp_path, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def stream_of(item: Item) -> bytes:
    written = io.BytesIO()
    table = pa.Table.from_pylist([item])
    with pa.ipc.new_stream(written, table.schema) as writer:
        writer.write_table(table)
    return written.getvalue()


def parquet_of(item: Item) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([item]), written, write_page_index=True)
    return written.getvalue()


@pytest.mark.parametrize(
    ("written", "name", "words"),
    [(stream_of, "a.arrow", "more follows its end at byte"), (parquet_of, "a.parquet", "it holds several")],
)
def test_tables_put_together_as_bytes_are_refused(
    tmp_path: Path, written: Callable[[Item], bytes], name: str, words: str
) -> None:
    """Of two such files, pyarrow reads one: the first of Arrow's; of Parquet's the first under the second's footer."""
    parts = [written(item) for item in items()]
    for part in parts:
        (tmp_path / name).write_bytes(part)
        assert len(list(open_source(here(tmp_path / name), "train").read().items())) == 1
    (tmp_path / name).write_bytes(b"".join(parts))
    with pytest.raises(DataError, match=words):
        list(open_source(here(tmp_path / name), "train").read().items())


def test_a_table_without_conversations_lists_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b""], "caption": ["tea"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="has the columns picture, caption; one of conversations"):
        imported(tmp_path, tmp_path / "out", "train.parquet")
