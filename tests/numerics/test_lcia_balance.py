"""LCIA's moving average: hand-worked numbers, an independent loop, and the toy problem that shows what sizes do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from components.core.errors import CheckpointError
from components.methods.common.balance import Balance, BalancedAverage
from components.methods.lcia import LciaConfig

CODE = LciaConfig(ema_start="task_start").balance_options
PAPER = replace(CODE, rule="paper")
BARE_PAPER = replace(PAPER, step_difference=False)
CONSTANT = replace(CODE, rule="constant")


def tensors(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values)}


# Two steps of a tensor of two elements, fallback 0.5. Step 1 has no gradient before it: theta* = (0, 0) moves half way
# to (0.5, 0.5), so it is (0.25, 0.25). Step 2 reaches theta = (1, 0.5) with g = (3, -1) after (-1, 3), thus
# |g| = 4, |g - before| = 8, |theta - theta*| = 0.75 + 0.25 = 1, |theta - before| = 0.5; means are half of each.
HAND_WORKED = [
    # kappa 2: 2 (1 + 4) / (1 * 8) = 1.25, outside: half old, half new
    (CODE, None, [0.625, 0.375]),
    # 0.4 (1 + 4) / 8 = 0.25 of the new
    (replace(CODE, kappa=0.4), 0.75, [0.4375, 0.3125]),
    # 0.4 (0.5 + 4) / 8 = 0.225 of the new
    (replace(CODE, kappa=0.4, stability=0.5), 0.775, [0.41875, 0.30625]),
    # (1 + 4) 0.5 / 8 = 0.3125 of the old
    (PAPER, 0.3125, [0.765625, 0.421875]),
    # kappa is not the paper's
    (replace(PAPER, kappa=0.01), 0.3125, [0.765625, 0.421875]),
    # (1 + 4) / 8 = 0.625 of the old
    (BARE_PAPER, 0.625, [0.53125, 0.34375]),
    # means: 0.4 (1 + 2) / (0.5 * 4) = 0.6 of the new
    (replace(CODE, kappa=0.4, norm="l1_mean"), 0.4, [0.7, 0.4]),
    # means: (1 + 2) 0.25 / (0.5 * 4) = 0.375 of the old
    (replace(PAPER, norm="l1_mean"), 0.375, [0.71875, 0.40625]),
    # means: (1 + 2) / (0.5 * 4) = 1.5, outside
    (replace(BARE_PAPER, norm="l1_mean"), None, [0.625, 0.375]),
]


@pytest.mark.parametrize(("balance", "old", "expected"), HAND_WORKED)
def test_hand_worked_step(balance: Balance, old: float | None, expected: list[float]) -> None:
    average = BalancedAverage(replace(balance, constant_weight=0.5), tensors(0.0, 0.0))
    average.update(tensors(0.5, 0.5), tensors(-1.0, 3.0))
    assert average.average["w"].tolist() == [0.25, 0.25]
    assert float(average.statistics()["ema_fallback"]) == 1.0
    average.update(tensors(1.0, 0.5), tensors(3.0, -1.0))
    torch.testing.assert_close(average.average["w"], torch.tensor(expected), rtol=0, atol=1e-7)
    statistics = average.statistics()
    assert float(statistics["ema_fallback"]) == (old is None)
    assert float(statistics["ema_old_p50"]) == pytest.approx(0.5 if old is None else old, abs=1e-7)
    assert average.means()["ema_fallback"] == (1.0 if old is None else 0.5)


@pytest.mark.parametrize("balance", [CODE, PAPER, BARE_PAPER], ids=["code", "paper", "bare paper"])
@pytest.mark.parametrize(
    ("theta", "gradient"),
    [
        ((0.25, 0.25), (3.0, -1.0)),  # on the average: the distance is 0, the value infinite or not a number
        ((1.0, 0.5), (-1.0, 3.0)),  # the same gradient again: the change is 0
        ((1.0, 0.5), None),  # no gradient
    ],
    ids=["no distance", "no change", "no gradient"],
)
def test_a_value_outside_0_and_1_falls_back_and_is_counted(
    balance: Balance, theta: tuple[float, ...], gradient: tuple[float, ...] | None
) -> None:
    average = BalancedAverage(replace(balance, constant_weight=0.5), tensors(0.0, 0.0))
    average.update(tensors(0.5, 0.5), tensors(-1.0, 3.0))
    average.update(tensors(*theta), {} if gradient is None else tensors(*gradient))
    torch.testing.assert_close(average.average["w"], 0.5 * (torch.tensor([0.25, 0.25]) + torch.tensor(theta)))
    assert float(average.statistics()["ema_fallback"]) == 1.0


def test_statistics_are_shares_and_quantiles_over_the_tensors() -> None:
    """Three tensors, one step after the first: two inside with 0.6 and 0.9 of the new, one outside (0.99 old)."""
    start = {name: torch.zeros(1) for name in "abc"}
    average = BalancedAverage(replace(CODE, kappa=1.0), start)
    average.update({name: torch.zeros(1) for name in "abc"}, {name: torch.zeros(1) for name in "abc"})
    theta = {"a": torch.tensor([2.5]), "b": torch.tensor([5 / 3]), "c": torch.tensor([0.1])}
    gradient = {"a": torch.tensor([2.0]), "b": torch.tensor([2.0]), "c": torch.tensor([2.0])}
    average.update(theta, gradient)  # 3 / (2.5 * 2) = 0.6, 3 / (5/3 * 2) = 0.9, 3 / (0.1 * 2) = 15
    statistics = {name: float(value) for name, value in average.statistics().items()}
    assert statistics["ema_fallback"] == pytest.approx(1 / 3)
    assert statistics["ema_old_p50"] == pytest.approx(0.4)
    assert statistics["ema_old_p10"] == pytest.approx(0.1 + 0.2 * 0.3)  # linear between 0.1 and 0.4
    assert statistics["ema_old_p90"] == pytest.approx(0.4 + 0.8 * 0.59)
    assert average.means()["ema_fallback"] == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("balance", "power"),
    [(CODE, None), (PAPER, None), (replace(CODE, norm="l1_mean"), 0), (replace(PAPER, norm="l1_mean"), 0)],
    ids=["code sum", "paper sum", "code mean", "paper mean"],
)
def test_sums_depend_on_the_size_of_a_tensor_and_means_do_not(balance: Balance, power: int | None) -> None:
    """A tensor k times over: a, c, step grow with k and b with k, so (1 + b) step^s / (a c) is known in closed form."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(4, 10, generator=generator)

    def coefficient(copies: int) -> float:
        norms = [balance.measure(row.repeat(copies)) for row in small]
        step = norms[3] if balance.needs_previous else None
        return float(balance.coefficient(gradient=norms[0], change=norms[1], distance=norms[2], step=step))

    gradient = float(small[0].sum())
    for copies in (10, 1000):
        grown = (1 + copies * gradient) / (1 + gradient) / copies ** (1 if balance.needs_previous else 2)
        expected = 1.0 if power == 0 else grown
        assert coefficient(copies) / coefficient(1) == pytest.approx(expected, rel=1e-5)


def literal_loop(
    balance: Balance, start: np.ndarray, thetas: np.ndarray, gradients: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """The same recursion written out for one tensor in float64."""

    def norm(value: np.ndarray) -> float:
        return float(np.abs(value).mean() if balance.norm == "l1_mean" else np.abs(value).sum())

    average, before, gradient_before, olds = start, start, None, []
    for number, (theta, gradient) in enumerate(zip(thetas, gradients, strict=True)):
        if balance.start == "after_first_step" and number == 0:
            average = theta
        else:
            old = balance.constant_weight
            if gradient_before is not None:
                value = (balance.stability + norm(gradient)) / norm(gradient - gradient_before)
                value /= norm(theta - average)
                if balance.rule == "official_code":
                    value *= balance.kappa
                elif balance.step_difference:
                    value *= norm(theta - before)
                if 0 < value < 1:
                    old = value if balance.rule == "paper" else 1 - value
            average = old * average + (1 - old) * theta
            olds.append(old)
        before, gradient_before = theta, gradient
    return average, olds


@pytest.mark.parametrize("start", ["task_start", "after_first_step"])
@pytest.mark.parametrize(
    "balance",
    [
        CODE,
        replace(CODE, kappa=0.01, constant_weight=0.999),
        PAPER,
        BARE_PAPER,
        replace(CODE, norm="l1_mean", kappa=1e-4),
        replace(PAPER, norm="l1_mean", stability=1e-3),
    ],
    ids=["kappa 2", "kappa 0.01", "paper", "bare paper", "code mean", "paper mean"],
)
def test_equal_to_a_written_out_loop(balance: Balance, start: str) -> None:
    balance = replace(balance, start=start)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    first = random.normal(size=(40, 30))
    thetas = first + 0.01 * random.normal(size=(25, 40, 30)).cumsum(axis=0)
    gradients = 0.02 * random.normal(size=(25, 40, 30))
    expected, olds = literal_loop(balance, first, thetas, gradients)
    average = BalancedAverage(balance, {"w": torch.tensor(first, dtype=torch.float32)})
    found, fallbacks = [], 0.0
    for theta, gradient in zip(thetas, gradients, strict=True):
        average.update({"w": torch.tensor(theta).float()}, {"w": torch.tensor(gradient).float()})
        statistics = average.statistics()
        found += [float(statistics["ema_old_p50"])] if statistics else []
        fallbacks += float(statistics.get("ema_fallback", 0.0))
    assert found == pytest.approx(olds, rel=1e-4)
    assert fallbacks == sum(old == balance.constant_weight for old in olds) < 13  # most steps follow the formula
    torch.testing.assert_close(average.average["w"].double(), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert len(olds) == (25 if start == "task_start" else 24)
    summary = average.summary()
    assert summary["ema_steps"] == len(olds)
    expected_weights = [sum(olds) / len(olds), min(olds), max(olds)]
    assert [summary[f"ema_old_{which}"] for which in ("mean", "min", "max")] == pytest.approx(
        expected_weights, rel=1e-4
    )


@pytest.mark.parametrize("weight", [0.99, 0.999])
def test_a_constant_weight_has_a_closed_form(weight: float) -> None:
    """theta*_T = v^T theta_0 + (1 - v) sum over t of v^(T - t) theta_t."""
    generator = torch.Generator().manual_seed(0)
    thetas = torch.randn(201, 64, generator=generator)
    average = BalancedAverage(replace(CONSTANT, constant_weight=weight), {"w": thetas[0]})
    for theta in thetas[1:]:
        average.update({"w": theta}, {})
    weights = (1 - weight) * weight ** torch.arange(199, -1, -1, dtype=torch.float64)
    expected = weight**200 * thetas[0].double() + weights @ thetas[1:].double()
    torch.testing.assert_close(average.average["w"].double(), expected, rtol=0, atol=3e-6)
    assert average.means() == pytest.approx(
        {"ema_fallback": 0.0, "ema_old_p10": weight, "ema_old_p50": weight, "ema_old_p90": weight}
    )


def test_the_frozen_control_keeps_the_start_and_weight_0_the_live_tensor() -> None:
    thetas = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    frozen = BalancedAverage(replace(CODE, rule="frozen"), {"w": thetas[0]})
    live = BalancedAverage(replace(CONSTANT, constant_weight=0.0), {"w": thetas[0]})
    for theta in thetas[1:]:
        frozen.update({"w": theta}, {})
        live.update({"w": theta}, {})
    assert torch.equal(frozen.average["w"], thetas[0])
    assert torch.equal(live.average["w"], thetas[-1])


def test_averages_of_bfloat16_tensors_are_float32_and_do_not_stall() -> None:
    """A target 10 % away, weight 0.01, 500 steps: 99 % of the way; an average held in bfloat16 gets 14 %."""
    start = torch.rand(1000, generator=torch.Generator().manual_seed(0)).add(0.5).bfloat16()
    target = (1.1 * start).bfloat16()
    average = BalancedAverage(CONSTANT, {"w": start})
    for _ in range(500):
        average.update({"w": target}, {})
    assert average.average["w"].dtype == torch.float32
    way = (average.average["w"] - start.float()).sum() / (target.float() - start.float()).sum()
    assert float(way) == pytest.approx(1 - 0.99**500, abs=1e-3)


@pytest.mark.parametrize("balance", [CODE, PAPER, LciaConfig().balance_options, CONSTANT])
def test_an_interrupted_average_goes_on_bit_for_bit(balance: Balance) -> None:
    generator = torch.Generator().manual_seed(0)
    thetas, gradients = torch.randn(2, 9, 30, generator=generator)

    def run(average: BalancedAverage, steps: range) -> BalancedAverage:
        for step in steps:
            average.update({"w": thetas[step]}, {"w": gradients[step]} if balance.adaptive else {})
        return average

    whole = run(BalancedAverage(balance, {"w": torch.zeros(30)}), range(9))
    kept = run(BalancedAverage(balance, {"w": torch.zeros(30)}), range(4)).state()
    again = BalancedAverage(balance, {"w": torch.zeros(30)})
    again.load({name: value.clone() for name, value in kept.items()})
    again = run(again, range(4, 9))
    assert again.state().keys() == whole.state().keys()
    assert all(torch.equal(again.state()[name], value) for name, value in whole.state().items())
    assert again.summary() == whole.summary()


def test_the_released_start_is_a_copy_after_the_first_step() -> None:
    """As the code: nothing is weighed at the first step, whose gradient the second one already compares with."""
    average = BalancedAverage(replace(LciaConfig().balance_options, kappa=0.4), tensors(0.0, 0.0))
    average.update(tensors(0.25, 0.25), tensors(-1.0, 3.0))
    assert average.average["w"].tolist() == [0.25, 0.25]
    assert average.statistics() == average.means() == {}
    average.update(tensors(1.0, 0.5), tensors(3.0, -1.0))  # 0.4 (1 + 4) / (1 * 8) = 0.25 of the new
    torch.testing.assert_close(average.average["w"], torch.tensor([0.4375, 0.3125]), rtol=0, atol=1e-7)


def test_a_state_before_the_first_step_is_taken_back() -> None:
    kept = BalancedAverage(LciaConfig().balance_options, tensors(0.0)).state()
    again = BalancedAverage(LciaConfig().balance_options, tensors(0.0))
    again.load(kept)
    again.update(tensors(0.5), tensors(1.0))
    assert again.average["w"].tolist() == [0.5]


def test_a_state_without_averages_is_refused() -> None:
    average = BalancedAverage(CODE, {"w": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="no moving averages"):
        average.load({})


TOY = {
    "constant": CONSTANT,
    "code 2": CODE,
    "code 0.01": replace(CODE, kappa=0.01),
    "paper": PAPER,
    "bare paper": BARE_PAPER,
}


def toy_problem(size: int, *, steps: int = 300) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """A noisy quadratic under Adam at 2e-4, target 0.1 away, gradient RMS 1e-4. Per rule: the median old weight, the
    share of steps in the fallback, the share of the distance that is missing at the end ("live": the tensor's own)."""
    generator = torch.Generator().manual_seed(size)
    target = 0.1 * torch.randn(size, generator=generator).sign()
    live = torch.zeros(size, requires_grad=True)
    adam = torch.optim.Adam([live], lr=2e-4)
    averages = {name: BalancedAverage(balance, {"w": live}) for name, balance in TOY.items()}
    olds: dict[str, list[float]] = {name: [] for name in TOY}
    for _ in range(steps):
        gradient = 1e-3 * (live.detach() - target) + 5e-5 * torch.randn(size, generator=generator)
        live.grad = gradient.clone()
        adam.step()
        for name, average in averages.items():
            average.update({"w": live.detach()}, {"w": gradient})
            olds[name].append(float(average.statistics()["ema_old_p50"]))
    ends = {"live": live.detach(), **{name: average.average["w"] for name, average in averages.items()}}
    missing = {name: float((end - target).abs().sum() / target.abs().sum()) for name, end in ends.items()}
    medians = {name: float(np.median(values)) for name, values in olds.items()}
    return medians, {name: average.means()["ema_fallback"] for name, average in averages.items()}, missing


def test_what_sizes_do_to_each_rule_on_a_toy_quadratic() -> None:
    """Small tensors: the fallback. Large ones: the code freezes them, the paper's form follows the live tensor."""
    small, between, large = (toy_problem(size) for size in (1_024, 16_384, 131_072))

    median, fallback, missing = small  # kappa 2 and the bare paper form are constant 0.99
    assert fallback["code 2"] > 0.99
    assert fallback["bare paper"] > 0.99
    assert missing["code 2"] == pytest.approx(missing["constant"], abs=1e-3)

    median, fallback, missing = between  # the code's value is inside half of the time and then leans to the new tensor
    assert 0.3 < fallback["code 2"] < 0.7
    assert missing["code 2"] == pytest.approx(missing["live"], abs=0.02)
    assert median["bare paper"] == pytest.approx(0.48, abs=0.1)
    assert median["code 0.01"] > 0.9998

    median, fallback, missing = large  # the code nearly freezes, kappa 0.01 does, the paper's forms follow
    assert median["code 2"] == pytest.approx(0.9991, abs=5e-4)
    assert missing["code 2"] > 0.9
    assert missing["code 0.01"] > 0.99
    assert median["bare paper"] == pytest.approx(0.07, abs=0.02)
    assert 0.4 < median["paper"] < 0.7
    for name in ("paper", "bare paper"):
        assert missing[name] == pytest.approx(missing["live"], abs=0.02)

    # with size the paper's old weight falls; constant averaging does not care
    assert small[0]["paper"] > between[0]["paper"] > large[0]["paper"]
    assert small[2]["constant"] == pytest.approx(large[2]["constant"], abs=0.02)


def test_means_need_a_lambda_of_the_gradients_size() -> None:
    """With lambda = 1 both forms leave (0, 1) at usual gradients; with the gradients' mean size they are inside."""
    generator = torch.Generator().manual_seed(0)
    thetas = 2e-4 * torch.randn(20, 4096, generator=generator).sign().abs().cumsum(dim=0)
    gradients = 1e-4 * torch.randn(20, 4096, generator=generator)
    shares = {}
    for stability in (1.0, 1e-4):
        average = BalancedAverage(replace(PAPER, norm="l1_mean", stability=stability), {"w": torch.zeros(4096)})
        for theta, gradient in zip(thetas, gradients, strict=True):
            average.update({"w": theta}, {"w": gradient})
        shares[stability] = average.means()["ema_fallback"]
    assert shares[1.0] == 1.0
    assert shares[1e-4] < 0.7
