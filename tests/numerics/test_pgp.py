"""Gradient projection against a written-out GPM on data matrices, closed forms, and outputs that must not move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
from small_stream import attached, batch_of, info, learn, pocket
from torch import Tensor, nn

from components.adapters.low_rank import LowRankPairs
from components.adapters.projected import InputGrams, ProjectedPairs, grown_basis
from components.core.errors import CheckpointError, ConfigError
from components.data.batch import Batch
from components.methods.base import Method, MethodConfig, MethodState
from components.methods.pgp import DOWN, UP, Pgp, PgpConfig
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig

TINY = PgpConfig(rank=4)


def pgp(config: PgpConfig = TINY) -> tuple[Pgp, Backbone]:
    backbone = pocket()
    method = attached(config, backbone)
    assert isinstance(method, Pgp)
    return method, backbone


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(rows, columns, seed=seed)).Q


def answers(method: Method, backbone: Backbone, batch: Batch) -> Tensor:
    backbone.eval()
    with torch.no_grad(), method.select(backbone, batch):
        return backbone(batch).logits


def learn_rows(
    method: Method, backbone: Backbone, name: str, rows: Sequence[int], *, end: bool = True, updates: int = 8
) -> TorchEngine:
    """A task of few rows, so that its inputs leave directions free: the pocket model has 64 of them per layer."""
    method.begin_task(backbone, info(name))
    engine, batch = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2)), batch_of(name, rows)
    backbone.train()
    for _ in range(updates):
        with method.select(backbone, batch) as selection:
            loss = method.loss(backbone, batch, backbone(batch), selection)
            engine.backward(loss.total)
        assert method.step(engine)
    if end:
        method.end_task(engine, info(name), iter([batch]))
        engine.close()
    return engine


# The space of inputs.


def written_out_gpm(known: list[Tensor], inputs: Tensor, energy: float) -> list[Tensor]:
    """GPM's memory update on a data matrix [d, n] by singular values: directions are appended one by one."""
    known = list(known)
    total = float((inputs**2).sum())
    rest = inputs.clone()
    for direction in known:
        for column in range(inputs.shape[1]):
            rest[:, column] -= (direction @ inputs[:, column]) * direction
    left, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
    held = total - float((rest**2).sum())
    for index, size in enumerate(sizes.tolist()):
        if held >= energy * total or size**2 <= 1e-12 * total:
            break
        known.append(left[:, index])
        held += size**2
    return known


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.97, 1.0])
def test_basis_is_gpms_over_three_tasks(energy: float) -> None:
    sizes = torch.logspace(0, -2, 9, dtype=torch.float64).unsqueeze(1)
    basis, known = torch.zeros(9, 0), []
    for task in range(3):
        inputs = orthonormal(9, 9, seed=task) @ (sizes * normal(9, 4, seed=10 + task))  # 4 of 9 dimensions each
        before = basis
        basis, known = (
            grown_basis(basis, 7.0 * inputs @ inputs.T, energy=energy),
            written_out_gpm(known, inputs, energy),
        )
        assert torch.equal(basis[:, : before.shape[1]], before)
        assert basis.shape == (9, len(known))
        expected = torch.stack(known, dim=1)
        torch.testing.assert_close(basis @ basis.T, (expected @ expected.T).float(), rtol=0, atol=1e-5)
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(known)), rtol=0, atol=1e-6)
    if energy == 1.0:
        assert basis.shape[1] == 9  # 4 + 4 + 1: the third task finds one direction left


def test_basis_by_hand() -> None:
    """Energies 6, 3, 1 on the axes, threshold 0.85: axes 0 and 1 hold 0.9. Then 5, 0, 2, 3 of 10: 0.5 is held already,
    axis 3 makes it 0.8 and axis 2 the whole.
    """
    basis = grown_basis(torch.zeros(4, 0), torch.diag(torch.tensor([6.0, 3.0, 1.0, 0.0]).double()), energy=0.85)
    assert basis.abs().tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]
    second = torch.diag(torch.tensor([5.0, 0.0, 2.0, 3.0]).double())
    assert grown_basis(basis, second, energy=0.85).abs()[:, 2:].tolist() == [[0, 0], [0, 0], [0, 1], [1, 0]]
    assert grown_basis(basis, second, energy=0.8).shape[1] == 3
    assert grown_basis(basis, second, energy=0.5).shape[1] == 2  # nothing new is needed


def test_rounding_adds_no_direction() -> None:
    """At energy 1 float32 inputs of three dimensions have three directions, not eight."""
    inputs = (orthonormal(8, 3) @ normal(3, 50)).float().double()
    assert grown_basis(torch.zeros(8, 0), inputs @ inputs.T, energy=1.0).shape[1] == 3


def test_grams_leave_padding_out_and_add_up_over_workers() -> None:
    method, backbone = pgp()
    halves = [method._input_grams(backbone, [batch_of("names", rows)]).sums for rows in ([0, 1], [2, 3])]
    pooled = method._input_grams(backbone, [batch_of("names")]).sums
    alone = [method._input_grams(backbone, [batch_of("names", [row])]).sums for row in range(4)]  # without padding
    for name, gram in pooled.items():
        mean = (halves[0][name] + halves[1][name]) / 2
        torch.testing.assert_close(2 * mean, gram, rtol=1e-5, atol=1e-5 * float(gram.abs().max()))
        total = torch.stack([sums[name] for sums in alone]).sum(dim=0)
        torch.testing.assert_close(total, gram, rtol=1e-5, atol=1e-5 * float(gram.abs().max()))
        expected = grown_basis(torch.zeros(64, 0), gram, energy=0.9)
        found = grown_basis(torch.zeros(64, 0), mean, energy=0.9)
        torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-3)


def test_grams_are_sums_of_outer_products() -> None:
    layer, x = nn.Linear(3, 2), normal(2, 4, 3).float()
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    grams = InputGrams({"layer": layer})
    with grams.recording(mask):
        layer(x)
    layer(x)  # outside the scope nothing is added
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for row, position in mask.nonzero().tolist():
        expected += torch.outer(x[row, position].double(), x[row, position].double())
    torch.testing.assert_close(grams.pop("layer"), expected)


@pytest.mark.parametrize(("samples", "looked_at"), [(0, 4), (1, 1), (3, 3)])
def test_only_the_asked_samples_are_looked_at(samples: int, looked_at: int) -> None:
    method, backbone = pgp(replace(TINY, basis_samples=samples))
    rows = (batch_of("names", [row]) for row in range(4))
    method._input_grams(backbone, rows)
    assert len(list(rows)) == 4 - looked_at


# The projected pair.


def pair(*, protect: bool = True) -> tuple[ProjectedPairs, Tensor, Tensor]:
    plain = LowRankPairs(nn.Linear(8, 5), num_pairs=1, rank=4, dropout=0.0)
    with torch.no_grad():
        plain.down.copy_(normal(4, 8, seed=1))
        plain.up.copy_(normal(5, 4, seed=2))
    pairs, u, v = ProjectedPairs(plain), orthonormal(8, 3).float(), orthonormal(4, 2).float()
    if protect:
        pairs.protect(u, v)
    return pairs, u, v


def test_forward_is_the_projected_matrices_and_settle_writes_them() -> None:
    pairs, u, v = pair()
    start_down, start_up = pairs.down.detach().clone(), pairs.up.detach().clone()
    with torch.no_grad():
        pairs.down.add_(normal(4, 8, seed=3))
        pairs.up.add_(normal(5, 4, seed=4))
    down = start_down + (pairs.down.detach() - start_down) @ (torch.eye(8) - u @ u.T)
    up = start_up + (pairs.up.detach() - start_up) @ (torch.eye(4) - v @ v.T)
    x = normal(2, 6, 8, seed=5).float()
    expected = x @ down.T @ up.T * 1.5
    torch.testing.assert_close(pairs(x, 1.5), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(down @ u, start_down @ u, rtol=1e-5, atol=1e-5)
    pairs.settle()
    torch.testing.assert_close(pairs.down.detach(), down, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pairs.up.detach(), up, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pairs(x, 1.5), expected, rtol=1e-5, atol=1e-5)
    assert not list(pairs.buffers())


@pytest.mark.parametrize("protect", [True, False])
def test_gradients_lie_in_the_complement(protect: bool) -> None:
    pairs, u, v = pair(protect=protect)
    pairs(normal(2, 6, 8, seed=5).float(), 1.5).square().sum().backward()
    for parameter, basis in ((pairs.down, u), (pairs.up, v)):
        assert parameter.grad is not None
        inside = float((parameter.grad @ basis).norm() / parameter.grad.norm())
        assert inside < 1e-5 if protect else inside > 0.1


# The method.


@pytest.mark.parametrize("up", ["project", "freeze", "free"])
def test_the_first_task_is_sequential_lora(up: Literal["project", "freeze", "free"]) -> None:
    method, backbone = pgp(replace(TINY, up=up))
    plain = pocket()
    sequential = attached(SequentialLoraConfig(rank=4), plain)
    assert learn(method, backbone, "names") == learn(sequential, plain, "names")
    assert all(torch.equal(method.parameters()[name], value) for name, value in sequential.parameters().items())


@pytest.mark.parametrize(("energy", "equal"), [(0.0, True), (0.97, False)])
def test_energy_zero_is_sequential_lora(energy: float, equal: bool) -> None:
    method, backbone = pgp(replace(TINY, energy=energy))
    plain = pocket()
    sequential = attached(SequentialLoraConfig(rank=4), plain)
    for name in ("names", "others"):
        assert (learn(method, backbone, name) == learn(sequential, plain, name)) == (equal or name == "names")
    same = [torch.equal(method.parameters()[name], value) for name, value in sequential.parameters().items()]
    assert all(same) == equal


WHOLE = PgpConfig(rank=16, energy=1.0, basis_samples=0)


def drift(config: MethodConfig) -> tuple[float, float]:
    """How far logits on a one-row task's inputs moved while another task was learned, and how far those on its own."""
    backbone = pocket()
    method = attached(config, backbone)
    old, new = batch_of("names", [1]), batch_of("others", [0, 3])
    learn_rows(method, backbone, "names", [1])
    learned, fresh = answers(method, backbone, old), answers(method, backbone, new)
    learn_rows(method, backbone, "others", [0, 3])
    moved = (answers(method, backbone, old) - learned, answers(method, backbone, new) - fresh)
    return float(moved[0].abs().max()), float(moved[1].abs().max())


def test_at_energy_one_old_answers_stay_and_new_ones_are_learned() -> None:
    sequential, _ = drift(SequentialLoraConfig(rank=16))
    assert sequential > 0.3
    for up in ("project", "freeze"):
        old, new = drift(replace(WHOLE, up=up))
        assert old < 1e-4
        assert new > 0.3
    free, _ = drift(replace(WHOLE, up="free"))
    assert free > 1e-2  # no guarantee: `up` moved on the old inputs' inner activations


@pytest.mark.parametrize("up", ["project", "freeze", "free"])
def test_up_trains_as_its_option_says(up: Literal["project", "freeze", "free"]) -> None:
    method, backbone = pgp(replace(TINY, up=up))
    learn(method, backbone, "names")
    assert {UP in name for name in method.bases} == ({True, False} if up == "project" else {False})
    before = {name: value.detach().clone() for name, value in method.parameters().items()}
    learn(method, backbone, "others")
    for name, value in method.parameters().items():
        if up == "freeze":
            assert torch.equal(value, before[name]) == name.endswith(".up")
        elif up == "free":
            assert not torch.equal(value, before[name])


def test_a_state_taken_inside_a_task_acts_and_goes_on_as_the_method_does() -> None:
    method, backbone = pgp()
    learn(method, backbone, "names")
    learn_rows(method, backbone, "others", range(4), end=False, updates=3)
    batch = batch_of("names")
    expected = answers(method, backbone, batch)
    other_backbone = pocket()
    other = attached(TINY, other_backbone, method.state_dict(backbone))
    torch.testing.assert_close(answers(other, other_backbone, batch), expected, rtol=1e-4, atol=1e-4)
    other.begin_task(other_backbone, info("others"))
    gradients = []
    for each, model in ((method, backbone), (other, other_backbone)):
        model.zero_grad()
        with each.select(model, batch_of("others")):
            model(batch_of("others")).loss.backward()
        gradients.append({name: value.grad for name, value in each.parameters().items() if value.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_a_run_without_directions_left_is_refused() -> None:
    method, backbone = pgp(replace(TINY, energy=1.0))
    learn(method, backbone, "names")
    for key, basis in method.bases.items():
        method.bases[key] = torch.eye(len(basis))
    with pytest.raises(ConfigError, match="nothing is left to learn task 'others'"):
        method.begin_task(backbone, info("others"))


def test_memory_survives_a_checkpoint_and_a_damaged_one_is_refused() -> None:
    method, backbone = pgp()
    learn(method, backbone, "names")
    state = method.state_dict(backbone)
    restored = attached(TINY, pocket(), state)
    assert isinstance(restored, Pgp)
    assert restored.bases.keys() == method.bases.keys()
    assert all(torch.equal(restored.bases[name], value) for name, value in method.bases.items())
    fewer = {name: value for name, value in state.tensors.items() if not name.startswith(DOWN)}
    with pytest.raises(CheckpointError, match=r"holds 3 bases pgp\.\*"):
        attached(TINY, pocket(), MethodState(tensors=fewer, structure=state.structure))


def test_a_task_without_batches_is_refused() -> None:
    method, backbone = pgp()
    method.begin_task(backbone, info("names"))
    with pytest.raises(ConfigError, match="no training batch of task 'names'"):
        method.end_task(TorchEngine(backbone, OptimizerConfig(learning_rate=1.0)), info("names"), iter(()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": 1.5}, r"pgp\.energy is 1\.5"),
        ({"energy": -0.1}, r"pgp\.energy is -0\.1"),
        ({"basis_samples": -1}, r"pgp\.basis_samples is -1"),
        ({"rank": 0}, r"pgp\.rank is 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
