"""EProj on pocket: which projector a task gets, the written-out penalty, importance and keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_stream import attached, batch_of, info, learn, pocket, train
from torch import Tensor

from components.core.errors import ConfigError
from components.methods.base import MethodState, copy_tensors
from components.methods.eproj import ANCHOR, EProj, EProjConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig
from tests.pictures import features_of

OWN = EProjConfig(sentence_encoder="hash", threshold=1.5)  # a projector per task
SHARED = EProjConfig(sentence_encoder="hash", threshold=0.0)  # one for all
COPY = "model.model.multi_modal_projector.copies."


def built(config: EProjConfig) -> tuple[EProj, Backbone]:
    backbone = pocket()
    method = attached(config, backbone)
    assert isinstance(method, EProj)
    return method, backbone


def unit(vector: Tensor) -> Tensor:
    return vector / torch.sqrt((vector * vector).sum())


def written_similarity(method: EProj, one: str, other: str) -> float:
    """Cosine of the means of unit instruction embeddings."""
    means = []
    for name in (one, other):
        vectors = method.encoder.encode(info(name).instructions).double()
        means.append(unit(torch.stack([unit(vector) for vector in vectors]).mean(dim=0)))
    return float(means[0] @ means[1])


def test_like_tasks_share_a_projector_and_unlike_ones_get_their_own() -> None:
    reference, _ = built(OWN)
    level = written_similarity(reference, "names", "others")
    assert 0.3 < level < 0.95  # the tasks share two of four questions
    for threshold, homes in ((level - 0.01, [0, 0]), (level + 0.01, [0, 1])):
        method, backbone = built(replace(OWN, threshold=threshold))
        learn(method, backbone, "names", updates=1)
        assert float(method.similarity(info("others"))) == pytest.approx(level, abs=1e-5)
        learn(method, backbone, "others", updates=1)
        assert method.homes == homes
        assert method.owner("names") == ("others" if homes == [0, 0] else "names")
        told = method.decisions()
        assert [told[name]["group"] for name in method.tasks] == homes[: len(method.tasks)]
        assert [told[name]["reused"] for name in method.tasks] == [False, homes == [0, 0]][: len(method.tasks)]


def test_a_projector_of_its_own_starts_as_the_pretrained_one_and_leaves_earlier_ones_alone() -> None:
    method, backbone = built(OWN)
    learn(method, backbone, "names")
    before = copy_tensors(method.parameters())
    method.begin_task(backbone, info("others"))
    new = {name: value for name, value in method.parameters().items() if name.startswith(f"{COPY}1.")}
    for name, value in new.items():
        frozen = backbone.state_dict()[name.replace("copies.1.", "")]
        assert torch.equal(value, frozen)
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, "others", updates=4)
    assert all(torch.equal(method.parameters()[name], value) for name, value in before.items())
    assert any(
        not torch.equal(value, backbone.state_dict()[name.replace("copies.1.", "")]) for name, value in new.items()
    )


def test_keys_are_mean_unit_queries_over_pictured_samples() -> None:
    method, backbone = built(OWN)
    method.begin_task(backbone, info("names"))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, "names", updates=1)
    # in two parts, one of them without a picture: the cut must not matter
    method.end_task(engine, info("names"), iter([batch_of("names", (0, 1, 2)), batch_of("names", (3,))]))
    pictures = features_of(backbone, batch_of("names"))
    expected = unit(torch.stack([unit(tokens.mean(dim=0)) for tokens in pictures]).mean(dim=0))
    torch.testing.assert_close(method.keys["image"][0], expected, rtol=0.0, atol=1e-5)


def test_importance_is_the_mean_size_of_the_logits_gradient() -> None:
    """Against finite differences of each sample's mean ||logits||^2 over its answer, for the largest entries."""
    method, backbone = built(OWN)
    method.begin_task(backbone, info("names"))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    method.end_task(engine, info("names"), iter([batch_of("names")]))
    assert sum(float(value.sum()) for value in method.importance.values()) == pytest.approx(1.0, abs=1e-4)

    def sizes() -> Tensor:
        with torch.no_grad(), method.projectors.using("0"):
            rows = [backbone(batch_of("names", (row,))).logits for row in (0, 2)]  # those with a picture
            return torch.stack([logits.double().square().sum(dim=1).mean() for logits in rows])

    bias = method.parameters()[f"{COPY}0.linear_2.bias"]
    weights = method.importance[f"{COPY}0.linear_2.bias"]
    slopes = []
    chosen = weights.argsort(descending=True)[:4].tolist()
    for index in chosen:
        values = []
        for step in (1e-2, -2e-2):
            with torch.no_grad():
                bias[index] += step
            values.append(sizes())
        with torch.no_grad():
            bias[index] += 1e-2
        slopes.append(float((values[0] - values[1]).abs().mean()) / 2e-2)
    found = weights[chosen] / weights[chosen[0]]
    torch.testing.assert_close(found, torch.tensor(slopes) / slopes[0], rtol=0.05, atol=0.0)


def test_the_penalty_written_out() -> None:
    method, backbone = built(replace(SHARED, penalty_weight=7.0))
    learn(method, backbone, "names")
    method.begin_task(backbone, info("others"))
    start = copy_tensors(method.parameters())
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, "others", updates=2)
    similarity = written_similarity(method, "names", "others")
    total = 0.0
    for name, value in method.parameters().items():
        drift = (value.detach() - start[name]).double()
        total += float((method.importance[name].double() * (1.0 - similarity) * drift * drift).sum())
    with method.select(backbone, batch_of("others")) as selection:
        outputs = backbone(batch_of("others"))
        loss = method.loss(backbone, batch_of("others"), outputs, selection)
    assert total > 0
    assert loss.total.item() == pytest.approx(outputs.loss.item() + 7.0 * total, rel=1e-5)


def test_the_larger_importance_and_its_task_are_kept() -> None:
    method, backbone = built(SHARED)
    learn(method, backbone, "names")
    first = {name: value.clone() for name, value in method.importance.items()}
    assert all(not source.any() for source in method.source.values())
    learn(method, backbone, "others")
    kept = [0, 0]
    for name, value in method.importance.items():
        source = method.source[name]
        assert torch.equal(value[source == 0], first[name][source == 0])
        assert bool((value[source == 1] > first[name][source == 1]).all())
        kept[0] += int((source == 0).sum())
        kept[1] += int((source == 1).sum())
    assert min(kept) > 0


def test_a_heavy_penalty_holds_a_shared_projector() -> None:
    drifts = []
    for weight in (0.0, 1e6):
        method, backbone = built(replace(SHARED, penalty_weight=weight))
        learn(method, backbone, "names")
        start = copy_tensors(method.parameters())
        learn(method, backbone, "others", updates=10)
        importance = method.importance
        drifts.append(
            sum(float((importance[n] * (v.detach() - start[n]) ** 2).sum()) for n, v in method.parameters().items())
        )
    assert drifts[1] < 0.2 * drifts[0]


def test_every_sample_is_answered_by_the_projector_of_the_nearest_keys() -> None:
    method, backbone = built(OWN)
    learn(method, backbone, "names")
    learn(method, backbone, "others")
    batch = batch_of("names")
    queries = method.encoder.encode(batch.instructions)
    pictures = features_of(backbone, batch)
    places = {0: 0, 2: 1}  # rows that have a picture
    expected = []
    for row in range(4):
        scores = []
        for task in range(2):
            score = float(unit(queries[row]) @ method.keys["text"][task])
            if row in places:
                score += float(unit(pictures[places[row]].mean(dim=0)) @ method.keys["image"][task])
            scores.append(score)
        expected.append(["names", "others"][scores.index(max(scores))])
    with torch.no_grad(), method.select(backbone, batch) as selection:
        assert selection.routed_to == expected
        assert selection.matched == [True, False, True, False]
        assert method.projectors.serving == [str(["names", "others"].index(expected[row])) for row in places]
        mixed = backbone(batch)
        served = backbone.projector(pictures)
    with torch.no_grad():
        plain = pocket()(batch)
        text_rows = (mixed.rows == 1) | (mixed.rows == 3)
        torch.testing.assert_close(mixed.logits[text_rows], plain.logits[text_rows], rtol=1e-4, atol=1e-5)
        for row, place in places.items():
            home = ["names", "others"].index(expected[row])
            alone = method.projectors.copies[str(home)](pictures[place : place + 1])
            torch.testing.assert_close(served[place : place + 1], alone, rtol=1e-5, atol=1e-6)


def test_a_task_without_pictures_is_refused() -> None:
    method, backbone = built(OWN)
    method.begin_task(backbone, info("names"))
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    with pytest.raises(ConfigError, match="'names' has no pictures"):
        method.end_task(engine, info("names"), iter([batch_of("names", (1, 3))]))


def test_a_shared_projectors_anchor_survives_an_interruption() -> None:
    method, backbone = built(SHARED)
    learn(method, backbone, "names")
    method.begin_task(backbone, info("others"))
    start = copy_tensors(method.parameters())
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, "others", updates=2)
    state = method.state_dict(backbone)
    other, fresh = built(SHARED)[0], pocket()
    other.attach(fresh, MethodState(tensors=state.tensors, structure=state.structure))
    other.begin_task(fresh, info("others"))
    assert all(torch.equal(other.anchor[name], value) for name, value in start.items())
    assert {ANCHOR + name for name in start} <= set(state.tensors)
    with method.select(backbone, batch_of("others")), other.select(fresh, batch_of("others")):
        assert method.distance is not None
        assert other.distance is not None
        assert float(method.distance.detach()) == float(other.distance.detach()) > 0


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="threshold is -1"):
        EProjConfig(threshold=-1.0)
