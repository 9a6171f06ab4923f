"""CF-Router's router against scikit-learn's ridge regression, its sums in every order, and what oracles must find."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import Ridge
from small_stream import TASKS, attached, batch_of, info, learn, pocket

from components.core.errors import CheckpointError, ConfigError
from components.data.batch import Batch
from components.methods.base import MethodState, TaskInfo, copy_tensors
from components.methods.cf_router import CROSS, GRAM, CfRouter, CfRouterConfig
from components.models.backbone import Backbone
from components.models.sentence import load_sentence_encoder
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig
from tests.pictures import cached, features_of

TINY = CfRouterConfig(rank=4, alpha=8.0, sentence_encoder="hash")
RIDGE = 0.3
ENGINE = OptimizerConfig(learning_rate=1e-3)


def cf_router(config: CfRouterConfig = TINY, state: MethodState | None = None) -> tuple[CfRouter, Backbone]:
    backbone = pocket()
    method = attached(config, backbone, state)
    assert isinstance(method, CfRouter)
    return method, backbone


def teach(method: CfRouter, backbone: Backbone, task: TaskInfo, batches: Iterable[Batch]) -> None:
    """A task without updates: what reaches the router."""
    method.begin_task(backbone, task)
    method.end_task(TorchEngine(backbone, ENGINE), task, batches)


def made_up(texts: Sequence[str], pictures: torch.Tensor | None = None) -> Batch:
    """Rows of four text tokens, and of one visual token with features `pictures` [N, C] where given."""
    count = len(texts)
    ids = torch.full((count, 5), 7)
    if pictures is not None:
        ids[:, 0] = pocket().family.image_token_id
    return Batch(
        sample_ids=[str(index) for index in range(count)],
        instructions=list(texts),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.full_like(ids, -100),
        pictures=[()] * count if pictures is None else [(cached(each.unsqueeze(0)),) for each in pictures],
    )


def routed(method: CfRouter, backbone: Backbone, batch: Batch) -> list[str]:
    backbone.eval()
    with method.select(backbone, batch) as selection:
        assert selection.routed_to is not None
        return selection.routed_to


def features_by_hand(backbone: Backbone, name: str) -> np.ndarray:
    """Per row: the question's and the picture's vector, each of length 1 (or zero), and a one."""
    encoder, rows = load_sentence_encoder("hash"), []
    for index, (question, _, colour) in enumerate(TASKS[name]):
        text = encoder.encode([question])[0].double().numpy()
        picture = np.zeros(backbone.picture_width)
        if colour is not None:
            picture = features_of(backbone, batch_of(name, [index]))[0].mean(dim=0).double().numpy()
            picture /= np.linalg.norm(picture)
        rows.append(np.concatenate([text / np.linalg.norm(text), picture, [1.0]]))
    return np.stack(rows)


def test_the_router_is_scikit_learns_ridge_on_the_pooled_rows() -> None:
    """The constant column is the intercept, and lambda weighs it as it weighs the rest: `fit_intercept=False`."""
    method, backbone = cf_router(replace(TINY, ridge=RIDGE))
    for name in ("names", "others"):
        learn(method, backbone, name, updates=2, batches=2)
    rows = np.concatenate([features_by_hand(backbone, name) for name in ("names", "others")])
    targets = np.kron(np.eye(2), np.ones((4, 1)))  # four rows of each task
    expected = Ridge(alpha=RIDGE, fit_intercept=False, solver="cholesky").fit(rows, targets).coef_.T
    assert method.router.dtype == torch.float64
    np.testing.assert_allclose(method.router.numpy(), expected, rtol=1e-6, atol=1e-8)
    scores = rows @ expected
    assert np.abs(scores[:, 0] - scores[:, 1]).min() > 1e-4  # so that rounding decides nothing
    found = [task for name in ("names", "others") for task in routed(method, backbone, batch_of(name))]
    assert found == [("names", "others")[index] for index in scores.argmax(axis=1)]


@pytest.mark.parametrize("kind", ["both", "hidden"])
def test_the_sums_do_not_depend_on_batches_or_on_the_order_of_rows_and_tasks(kind: str) -> None:
    config = replace(TINY, features=kind)
    streams = [
        (("names", "others"), [(0, 1, 2, 3)]),
        (("names", "others"), [(3,), (1, 0), (2,)]),
        (("others", "names"), [(2, 3), (0, 1)]),
    ]
    routers = []
    for names, parts in streams:
        method, backbone = cf_router(config)
        for index, name in enumerate(names):
            task = replace(info(name), index=index)
            teach(method, backbone, task, [batch_of(name, part) for part in parts])
        columns = [names.index(name) for name in ("names", "others")]
        routers.append((method.memory[GRAM], method.memory[CROSS][:, columns], method.router[:, columns]))
    tolerance = 1e-12 if kind == "both" else 1e-5  # the language model's own float32 depends on its batch
    for other in routers[1:]:
        for found, expected in zip(other, routers[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_passing_over_the_rows_twice_changes_nothing() -> None:
    routers = []
    for passes in (1, 2):
        method, backbone = cf_router()
        for name in ("names", "others"):
            teach(method, backbone, info(name), [batch_of(name)] * passes)
        routers.append(method.router)
    torch.testing.assert_close(routers[1], routers[0], rtol=1e-12, atol=1e-12)


class Worker(TorchEngine):
    """One of two engines in threads, whose means are real ones."""

    def __init__(self, backbone: Backbone, barrier: threading.Barrier, board: list[dict[str, torch.Tensor]]) -> None:
        super().__init__(backbone, ENGINE)
        self.barrier, self.board = barrier, board

    def mean_over_workers(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.board.append(tensors)
        self.barrier.wait(timeout=60)
        return {name: (self.board[0][name] + self.board[1][name]) / 2 for name in tensors}


@pytest.mark.parametrize("split", [((0, 1), (2, 3)), ((0, 1, 2), (3,)), ((0, 1, 2, 3), ())])
def test_two_workers_with_any_shares_find_what_one_finds(split: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    alone, backbone = cf_router()
    teach(alone, backbone, info("names"), [batch_of("names")])
    barrier, board = threading.Barrier(2), []
    pair = [cf_router() for _ in range(2)]

    def work(rank: int) -> None:
        method, own = pair[rank]
        batches = [batch_of("names", split[rank])] if split[rank] else []
        method.begin_task(own, info("names"))
        method.end_task(Worker(own, barrier, board), info("names"), batches)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for method, _ in pair:
        assert method.tasks == ["names"]
        torch.testing.assert_close(method.memory[GRAM], alone.memory[GRAM], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(method.router, alone.router, rtol=1e-12, atol=1e-12)


QUESTIONS = {
    "charts": ["Which bar is the highest?", "Which bar is the lowest?", "How many bars are blue?"],
    "forms": ["Read the date field.", "Read the name field of the form.", "What does the total field say?"],
    "scans": ["Name the organ in this scan.", "Which organ does the scan show?", "Is the scan normal?"],
}
UNSEEN = {
    "charts": "Which bar is the second highest?",
    "forms": "Read the address field.",
    "scans": "Which organ is in this scan?",
}


def test_questions_are_sent_to_the_task_that_asks_like_that() -> None:
    method, backbone = cf_router()
    for index, (name, texts) in enumerate(QUESTIONS.items()):
        teach(method, backbone, TaskInfo(index=index, name=name, instructions=texts), [made_up(texts)])
        known = list(QUESTIONS)[: index + 1]  # also after every task but the last
        assert routed(method, backbone, made_up([UNSEEN[name] for name in known])) == known


def test_pictures_are_told_apart_where_questions_are_the_same() -> None:
    channels = pocket().picture_width
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(2, channels, generator=generator)
    texts, tasks = ["What is it?"] * 8, ("cats", "trees")
    batches = [made_up(texts, centre + 0.5 * torch.randn(8, channels, generator=generator)) for centre in centres]
    fresh = [made_up(texts, centre + 0.5 * torch.randn(8, channels, generator=generator)) for centre in centres]
    for kind in ("picture", "both", "instruction"):
        method, backbone = cf_router(replace(TINY, features=kind))
        for index, name in enumerate(tasks):
            teach(method, backbone, TaskInfo(index=index, name=name, instructions=texts), [batches[index]])
        found = [routed(method, backbone, batch) for batch in fresh]
        if kind == "instruction":  # nothing tells them apart
            assert len(set(found[0] + found[1])) == 1
        else:
            assert found == [["cats"] * 8, ["trees"] * 8]


def test_the_expansion_separates_what_no_plane_does() -> None:
    """Task "same" has pictures along (1, 1) and (-1, -1), task "different" along (1, -1) and (-1, 1)."""
    channels, texts = pocket().picture_width, ["What is it?"] * 2
    signs = {"same": [[1.0, 1.0], [-1.0, -1.0]], "different": [[1.0, -1.0], [-1.0, 1.0]]}
    batches = {name: made_up(texts, torch.tensor(rows).repeat(1, channels // 2)) for name, rows in signs.items()}
    right = {}
    for expansion in (0, 200):
        method, backbone = cf_router(replace(TINY, features="picture", expansion=expansion, ridge=1e-3))
        for index, (name, batch) in enumerate(batches.items()):
            teach(method, backbone, TaskInfo(index=index, name=name, instructions=texts), [batch])
        right[expansion] = sum(routed(method, backbone, batch).count(name) for name, batch in batches.items())
        assert len(method.memory[GRAM]) == (expansion or channels) + 1
    assert right[0] < 4
    assert right[200] == 4


def test_hidden_features_are_the_plain_models_mean_state_before_the_answer() -> None:
    """Against one call of the language model per row, on its question alone and without padding."""
    method, backbone = cf_router(replace(TINY, features="hidden"))
    learn(method, backbone, "names")  # the branch must not matter
    plain, batch, expected = pocket(), batch_of("others", [1, 2, 3]), []
    for index in range(len(batch)):
        answer = int((batch.labels[index] != -100).nonzero()[0])
        embeddings = plain.language_model.get_input_embeddings()(batch.input_ids[index : index + 1, :answer])
        with torch.no_grad():
            states = plain.language_model(inputs_embeds=embeddings).last_hidden_state[0]
        mean = states.mean(dim=0)
        expected.append(torch.cat([mean / mean.norm(), torch.ones(1)]))
    backbone.train()
    found = method._features(backbone, batch)
    assert backbone.training
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=1e-4, atol=1e-5)
    assert method.memory[GRAM].shape == (backbone.hidden_size + 1,) * 2
    assert set(routed(method, backbone, batch)) == {"names"}


@pytest.mark.parametrize("kind", ["both", "hidden"])
def test_under_an_oracle_nothing_is_forgotten(kind: str) -> None:
    method, backbone = cf_router(replace(TINY, features=kind))
    known = replace(batch_of("names"), oracle_task="names")

    def logits() -> torch.Tensor:
        with torch.no_grad(), method.select(backbone, known) as selection:
            assert selection.routed_to == ["names"] * 4
            return backbone(known).logits

    learn(method, backbone, "names")
    before, kept = logits(), copy_tensors(method.parameters())
    learn(method, backbone, "others")
    assert torch.equal(logits(), before)
    assert all(torch.equal(method.parameters()[name], value) for name, value in kept.items())
    assert not torch.equal(pocket()(known).logits, before)


def test_a_state_brings_the_sums_in_double_precision_and_the_same_router(tmp_path: Path) -> None:
    config = replace(TINY, expansion=50)
    method, backbone = cf_router(config)
    for name in ("names", "others"):
        learn(method, backbone, name, updates=2)
    state = method.state_dict(backbone)
    save_file(state.tensors, tmp_path / "state.safetensors")
    other, other_backbone = cf_router(
        config, MethodState(tensors=load_file(tmp_path / "state.safetensors"), structure=state.structure)
    )
    assert torch.equal(other.router, method.router)
    assert other.memory[GRAM].dtype == torch.float64
    batch = batch_of("others")
    assert routed(other, other_backbone, batch) == routed(method, backbone, batch)
    assert torch.equal(other._features(other_backbone, batch), method._features(backbone, batch))


def test_a_state_without_its_sums_is_refused() -> None:
    method, backbone = cf_router()
    learn(method, backbone, "names", updates=1)
    state = method.state_dict(backbone)
    for tensors in (
        {name: value for name, value in state.tensors.items() if not name.endswith(CROSS)},
        {**state.tensors, f"memory.{GRAM}": torch.zeros(3, 3, dtype=torch.float64)},
    ):
        with pytest.raises(CheckpointError, match="sums of shapes"):
            cf_router(TINY, MethodState(tensors=tensors, structure=state.structure))


def test_a_task_without_rows_is_refused() -> None:
    method, backbone = cf_router()
    with pytest.raises(ConfigError, match="no training batch of task 'names'"):
        teach(method, backbone, info("names"), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ridge": 0.0}, r"cf_router\.ridge is 0\.0"),
        ({"expansion": -1}, r"cf_router\.expansion is -1"),
        ({"alpha": 0.0}, "alpha is 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
