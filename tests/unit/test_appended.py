"""Lines that are only ever added, in a store: whole parts, few of them, and found without a listing."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing_store import Store

from components.core import appended
from components.core.appended import Parts


def add(parts: Parts, lines: bytes, *, at_once: bool = True) -> None:
    with parts.file.open("ab") as file:
        file.write(lines)
    parts.keep(at_once=at_once)


def there(store: Store) -> bytes:
    """What the store has, its parts in the order of their names."""
    return b"".join(store.files[name] for name in sorted(store.files))


@pytest.mark.parametrize("whole_puts", [True, False])
def test_another_process_goes_on_with_all_lines(whole_puts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appended, "PART_BYTES", 20)
    store = Store(whole_puts=whole_puts)
    store.listed = set()  # listings show nothing
    expected = b""
    for number in range(30):
        parts = Parts(store.place("runs/r/events.jsonl"))
        assert parts.file.read_bytes() == expected
        for _ in range(2):
            line = b"%d\n" % number**4
            add(parts, line)
            expected += line
    assert there(store) == expected
    assert len(store.files) <= len(expected) / 20 + 1
    assert min(map(len, [*store.files.values()][:-1])) >= 20


def test_what_need_not_be_there_at_once_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(whole_puts=True)
    parts = Parts(store.place("runs/r/events.jsonl"))
    add(parts, b"1\n", at_once=False)
    assert store.files == {}
    add(parts, b"2\n")
    assert there(store) == b"1\n2\n"
    add(parts, b"3\n", at_once=False)
    assert there(store) == b"1\n2\n"
    monkeypatch.setattr(appended, "EVERY_S", 0.0)
    add(parts, b"4\n", at_once=False)
    assert there(store) == b"1\n2\n3\n4\n"


def test_what_fails_is_put_the_next_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(appended, "PART_BYTES", 4)
    store = Store(whole_puts=True)
    parts = Parts(store.place("runs/r/events.jsonl"))
    add(parts, b"1\n")
    for at in range(1, 4):
        with store.failing(at, after=False, gone=True):
            add(parts, b"%d\n" % at)
    add(parts, b"9\n")
    assert Parts(store.place("runs/r/events.jsonl")).file.read_bytes() == b"1\n1\n2\n3\n9\n" == there(store)
