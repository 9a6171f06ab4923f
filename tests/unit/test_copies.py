"""Copies of files in stores: fetched once by whoever comes, compared with their digest, and bounded."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from failing_store import Store

from components.core import copies
from components.core.copies import IN_USE_S, NotAsListed, copied, copied_once, copies_dir, copy_of, forget
from components.core.errors import ConfigError, StorageError
from components.core.location import Location


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path))
    monkeypatch.setattr(copies, "PATIENCE_S", 0.0)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kept(store: Store, name: str, content: bytes) -> Location:
    file = store.place(f"b/{name}")
    file.put(content)
    return file


def reads(store: Store) -> int:
    return store.done.count("read")


def test_it_is_fetched_once_whatever_it_is_called() -> None:
    store = Store(whole_puts=True)
    file, same = kept(store, "a.parquet", b"content"), kept(store, "folder/b.parquet", b"content")
    assert copy_of(file, digest(b"content")) is None
    store.done = []
    first = copied(file, digest(b"content"))
    assert (first.read_bytes(), first.suffix, reads(store)) == (b"content", ".parquet", 1)
    assert copied(same, digest(b"content")) == first == copy_of(same, digest(b"content"))
    assert reads(store) == 1
    assert [each.name for each in copies_dir().iterdir() if not each.name.startswith(".")] == [first.name]


def test_a_file_of_this_machine_is_itself(tmp_path: Path) -> None:
    assert copied(tmp_path / "a", "0" * 64) == copied_once(tmp_path / "a") == tmp_path / "a"
    assert not copies_dir().exists()


def test_other_content_than_listed_is_no_copy() -> None:
    store = Store(whole_puts=True)
    file = kept(store, "a", b"content")
    for wanted in (digest(b"other"), "../../../etc/passwd", "", digest(b"content").upper()):
        with pytest.raises(NotAsListed):
            copied(file, wanted)
    assert not copies_dir().exists() or [each for each in copies_dir().iterdir() if each.name[0] != "."] == []
    assert copied(file, digest(b"content")).read_bytes() == b"content"


def test_what_cannot_be_fetched_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(whole_puts=True)
    file = kept(store, "a", b"content")
    with pytest.raises(FileNotFoundError):
        copied(store.place("b/other"), digest(b"content"))
    with store.failing(1, after=False, gone=True), pytest.raises(StorageError, match="test://b/a cannot be read"):
        copied(file, digest(b"content"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"no copies of files in stores can be kept in .*set LITTORAL_CACHE"):
        copied(file, digest(b"content"))


def test_many_that_come_at_once_fetch_it_once() -> None:
    store = Store(whole_puts=True)
    file = kept(store, "a", b"x" * 1000)
    store.done, found = [], list[Path]()
    threads = [threading.Thread(target=lambda: found.append(copied(file, digest(b"x" * 1000)))) for _ in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (len(found), len({*found}), reads(store)) == (20, 1, 1)


def test_what_was_not_asked_for_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for three of 100 bytes; what is in use, or was a moment ago, stays."""
    monkeypatch.setenv("LITTORAL_COPIES_GB", "3.5e-7")
    monkeypatch.setattr(copies, "_fetched", 0)
    store = Store(whole_puts=True)
    files = {number: kept(store, str(number), bytes([number]) * 100) for number in range(6)}
    digests = {number: digest(bytes([number]) * 100) for number in files}
    for number in range(3):
        os.utime(copied(files[number], digests[number]), (number, number))
    copied(files[0], digests[0])  # asked for again, so the second one is the oldest
    copied(files[3], digests[3])
    assert [number for number in files if copy_of(files[number], digests[number])] == [0, 2, 3]
    for number in (4, 5):
        copied(files[number], digests[number])
    there = [number for number in files if copy_of(files[number], digests[number])]
    assert there == [0, 2, 3, 4, 5]  # `copy_of` has asked for them just now
    past = copies_dir().stat().st_mtime - IN_USE_S - 10
    for number in there:
        found = copy_of(files[number], digests[number])
        assert found is not None
        os.utime(found, (past + number, past + number))
    copied(files[1], digests[1])
    assert {each.name for each in copies_dir().iterdir() if each.name[0] != "."} == {digests[1], digests[4], digests[5]}


@pytest.mark.parametrize("given", ["much", "0", "-1", "nan", "inf"])
def test_a_bound_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("LITTORAL_COPIES_GB", given)
    store = Store(whole_puts=True)
    with pytest.raises(ConfigError, match=f"LITTORAL_COPIES_GB is '{given}'; give a positive number"):
        copied(kept(store, "a", b"content"), digest(b"content"))


def test_what_nobody_lists_is_known_by_its_place() -> None:
    store = Store(whole_puts=True)
    one, two = kept(store, "one.json", b"1"), kept(store, "two.json", b"2")
    assert [copied_once(each).read_bytes() for each in (one, two, one)] == [b"1", b"2", b"1"]
    store.files["b/one.json"] = b"3"
    assert copied_once(one).read_bytes() == b"1"
    forget(one)
    assert copied_once(one).read_bytes() == b"3"
