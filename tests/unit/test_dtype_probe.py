"""backbone.dtype auto: what is measured, what is kept, and what a run that began stays with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.training import dtype_probe
from components.training.dtype_probe import QUICKER, Probe, error_of, measured, probed, require_no_auto, stored_dtype
from components.training.dtype_probe import with_dtype as resolved

AUTO = BackboneConfig(name="pocket", dtype="auto")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITTORAL_CACHE", str(tmp_path))
    for name, size in (("ROWS", 64), ("WIDTH", 256), ("INNER", 512)):  # at its own size in the first test
        monkeypatch.setattr(dtype_probe, name, size)
    return tmp_path


def kept(cache: Path) -> Path:
    [path] = (cache / "precision").glob("*.json")
    return path


def test_bfloat16_is_taken_only_where_it_is_clearly_quicker() -> None:
    for share, expected in ((0.47, "bfloat16"), (QUICKER, "bfloat16"), (QUICKER + 0.01, "float32"), (1.5, "float32")):
        assert Probe(processor="p", torch="t", float32_s=1.0, bfloat16_s=share).dtype == expected
    found = measured()
    assert found.float32_s > 0.0
    assert found.bfloat16_s > 0.0


def test_it_is_measured_once_and_kept(cache: Path) -> None:
    first = probed()
    path = kept(cache)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"bfloat16_s": 100 * content["float32_s"]}))
    assert probed().bfloat16_s == 100 * first.float32_s
    for damaged in ("{", "[]", json.dumps(content | {"bfloat16_s": "fast"}), json.dumps(content | {"float32_s": 0.0})):
        path.write_text(damaged)
        assert probed().bfloat16_s < 100 * first.float32_s  # measured again


@pytest.mark.parametrize(("share", "dtype"), [(0.1, "bfloat16"), (2.0, "float32")])
def test_auto_becomes_what_was_measured_and_says_so(cache: Path, share: float, dtype: str) -> None:
    probed()
    path = kept(cache)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"float32_s": 1.0, "bfloat16_s": share}))
    said: list[str] = []
    assert resolved(AUTO, None, said.append).dtype == dtype
    assert f"products in bfloat16 take {share:.2f} of float32's time: {dtype} is taken" in said[0]
    assert [("logits differ by" in text) for text in said[1:]] == ([True] if dtype == "bfloat16" else [])


def test_what_began_stays_as_it_was(cache: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"backbone": {"dtype": dtype}}))
        said: list[str] = []
        assert resolved(AUTO, stored_dtype(path), said.append).dtype == dtype
        assert said == [f"backbone.dtype auto stays {dtype}, as it was when this began"]
    assert not (cache / "precision").exists()
    assert stored_dtype(tmp_path / "missing.json") is None
    path.write_text(json.dumps({"sweep": {"run": {"backbone": {"dtype": "bfloat16"}}}}))
    assert stored_dtype(path) is None
    assert stored_dtype(path, "sweep", "run") == "bfloat16"


def test_a_named_precision_is_not_measured(cache: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        config = BackboneConfig(name="pocket", dtype=dtype)
        assert resolved(config, "float32", lambda _: pytest.fail("it said something")) == config
    assert not (cache / "precision").exists()


def test_the_error_is_that_of_rounded_weights() -> None:
    config = BackboneConfig(name="pocket", dtype="bfloat16")
    words = error_of(config).split()
    mean = float(words[words.index("by") + 1])
    spread = float(words[words.index("is") + 1].rstrip("),"))
    assert 0.0 < mean < 0.05 * spread  # bfloat16 has 8 bits: 0.4 % a number


def test_auto_is_no_precision_of_weights_and_none_of_a_space() -> None:
    with pytest.raises(ConfigError, match="is decided by coast and sweep alone"):
        load_backbone(AUTO)
    require_no_auto(("float32", "bfloat16"))
    with pytest.raises(ConfigError, match="decided once for all trials"):
        require_no_auto(("auto", "bfloat16"))
