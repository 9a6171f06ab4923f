"""A short damage campaign over every reader; the long one is tests/campaigns/damage.py."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from components.core.errors import ConfigError, DataError
from components.core.location import here
from components.core.reading import JSON_DEPTH, parse_json, read_object
from components.data.formats.sources import open_source

CAMPAIGN = Path(__file__).parents[1] / "campaigns" / "damage.py"


def test_no_reader_lets_damage_through() -> None:
    done = subprocess.run([sys.executable, CAMPAIGN, "--cases", "300"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "300 cases, 0 failures" in done.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * (JSON_DEPTH + 1) + b"]" * (JSON_DEPTH + 1), "nested deeper"),
        (b"NaN", "no JSON number"),
        (b"1e999", "too large"),
        (b"9" * 400, "64 bits"),
        (rb'"\ud800"', "half of an escaped character"),
        (rb'{"a": ["\u0000"]}', "NUL"),
    ],
)
def test_json_that_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(content)


def test_json_within_the_bounds() -> None:
    deep = "[" * JSON_DEPTH + "]" * JSON_DEPTH
    assert parse_json(deep) == json.loads(deep)
    assert parse_json(b'{"a": [1, 2.5, null, "\xc3\xa4"]}') == {"a": [1, 2.5, None, "ä"]}


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_object(path, ConfigError, "mend it", limit=8) == {"a": 1}
    with pytest.raises(ConfigError, match=r"a\.json cannot be read \(it has more than 7 bytes\); mend it"):
        read_object(path, ConfigError, "mend it", limit=7)


def test_a_pattern_that_names_too_many_files(tmp_path: Path) -> None:
    for name in ("x{0..5000000}.json", "x{0..999}{0..999}.json", "x{0..99999999999999999999}.json"):
        with pytest.raises(DataError, match="100,000 files"):
            open_source(here(tmp_path / name), "train")


def test_an_arrow_file_whose_offsets_lead_outside(tmp_path: Path) -> None:
    path, file = tmp_path / "a.arrow", io.BytesIO()
    with pa.ipc.new_stream(file, pa.schema([("conversations", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([["ab", "c", "def"]], names=["conversations"]))
    whole, far = struct.pack("<4i", 0, 2, 3, 6), struct.pack("<4i", 0, 1 << 30, 3, 6)
    assert file.getvalue().count(whole) == 1
    path.write_bytes(file.getvalue().replace(whole, far))
    with pytest.raises(DataError, match="not a whole Arrow file"):
        list(open_source(here(path), "train").read().items())
