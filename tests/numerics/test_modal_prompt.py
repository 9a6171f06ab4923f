"""ModalPrompt on pocket: prototypes, guidance, choice and fusion against written-out formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prompt_tasks import cosine, questions, training_batch
from prompt_tasks import learn as learn_text
from prompt_tasks import task as text_task
from small_stream import attached, batch_of, info, learn, pocket, train
from torch import Tensor
from torch.nn import functional as F

from components.adapters.task_prompts import PrototypeHead
from components.core.errors import ConfigError
from components.methods.base import copy_tensors
from components.methods.modal_prompt import STEP, ModalPrompt, ModalPromptConfig
from components.models.backbone import Backbone
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig
from tests.pictures import features_of

TINY = ModalPromptConfig(sentence_encoder="hash", prompt_length=3)
WORDS = "model.model.language_model.embed_tokens.weight"


def built(config: ModalPromptConfig = TINY) -> tuple[ModalPrompt, Backbone]:
    backbone = pocket()
    method = attached(config, backbone)
    assert isinstance(method, ModalPrompt)
    return method, backbone


def written_prototypes(head: PrototypeHead, prompt: Tensor) -> list[Tensor]:
    """Token by token: W2 silu(W1 x + b1) + b2, then the mean."""
    found = []
    for out in (head.image, head.text):
        rows = []
        for token in prompt.detach():
            inner = head.hidden.weight @ token + head.hidden.bias
            inner = inner / (1.0 + torch.exp(-inner))
            rows.append(out.weight @ inner + out.bias)
        found.append(torch.stack(rows).mean(dim=0).detach())
    return found


def three_tasks() -> tuple[ModalPrompt, Backbone]:
    """Three text-only tasks of three questions each."""
    method, backbone = built(replace(TINY, top_k=2))
    for index in range(3):
        learn_text(method, backbone, index, updates=8, rate=1e-2)
    return method, backbone


def test_a_prompt_starts_as_embeddings_of_random_tokens() -> None:
    method, backbone = built()
    method.begin_task(backbone, info("names"))
    prompt = method.prompts(1)[0].detach()
    words = backbone.state_dict()[WORDS]
    for row in prompt:
        assert float((words - row).abs().max(dim=1).values.min()) < 1e-6
    stored = method.parameters()["modal_prompts.prompt_0"].detach()
    torch.testing.assert_close(stored * STEP * method.unit, prompt)


def test_the_objective_written_out() -> None:
    method, backbone = built(replace(TINY, image_pull=0.3, text_pull=0.6))
    method.begin_task(backbone, info("names"))
    batch = batch_of("names")  # rows 0 and 2 have pictures
    assert method.head is not None
    image, text = written_prototypes(method.head, method.prompts(1)[0] / method.unit)
    pictures = features_of(backbone, batch)
    by_image = {0: 1.0 - cosine(pictures[0].mean(dim=0), image), 2: 1.0 - cosine(pictures[1].mean(dim=0), image)}
    queries = method.encoder.encode(batch.instructions)
    tokens = [int((labels[1:] != -100).sum()) for labels in batch.labels]
    extra = 0.0
    for row, count in enumerate(tokens):
        distance = 0.6 * (1.0 - cosine(queries[row], text)) + 0.3 * by_image.get(row, 0.0)
        extra += count * distance / sum(tokens)
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        loss = method.loss(backbone, batch, outputs, selection)
    assert loss.total.item() == pytest.approx(outputs.loss.item() + extra, abs=1e-5)


def test_a_kept_prototype_is_what_the_head_gave_at_the_end() -> None:
    method, backbone = built()
    method.begin_task(backbone, info("names"))
    head = method.head
    assert head is not None
    learn_rest(method, backbone)
    image, text = written_prototypes(head, method.prompts(1)[0] / method.unit)
    torch.testing.assert_close(method.memory["image"][0], image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.memory["text"][0], text, rtol=1e-4, atol=1e-5)
    assert method.head is None
    assert not any("head" in name for name in method.parameters())


def learn_rest(method: ModalPrompt, backbone: Backbone) -> None:
    """Six updates and the end of the first task, which was begun."""
    engine = TorchEngine(backbone, OptimizerConfig(learning_rate=1e-2))
    train(method, engine, "names", updates=6)
    method.end_task(engine, info("names"), iter(()))
    engine.close()


def test_prototypes_reach_the_optimum_of_their_pull() -> None:
    """The sum of 1 - cos is least along the mean unit query, each weighted by its answer tokens."""
    method, backbone = built()
    learn(method, backbone, "names", updates=30)
    batch = batch_of("names")
    tokens = (batch.labels[:, 1:] != -100).sum(dim=1).float()
    pictures = features_of(backbone, batch).mean(dim=1)
    wanted = {
        "image": tokens[[0, 2]] @ F.normalize(pictures, dim=1),
        "text": tokens @ F.normalize(method.encoder.encode(batch.instructions), dim=1),
    }
    for name, direction in wanted.items():
        assert cosine(direction, method.memory[name][0]) > 0.98


def test_the_guide_weighs_picture_and_text_and_the_most_similar_stands_last() -> None:
    method, backbone = built(replace(TINY, image_share=0.3))
    learn(method, backbone, "names", updates=8)
    learn(method, backbone, "others", updates=8)
    batch = batch_of("names")
    pictures = features_of(backbone, batch).mean(dim=1)
    queries, places = method.encoder.encode(batch.instructions), {0: 0, 2: 1}
    with torch.no_grad(), method.select(backbone, batch) as selection:
        assert selection.slots is not None
        for row in range(4):
            guide = []
            for task in range(2):
                by_text = cosine(queries[row], method.memory["text"][task])
                if row in places:
                    by_image = cosine(pictures[places[row]], method.memory["image"][task])
                    guide.append(0.3 * by_image + 0.7 * by_text)
                else:
                    guide.append(by_text)
            assert selection.slots[row].tolist() == ([1, 0] if guide[0] > guide[1] else [0, 1])
            assert selection.routed_to is not None
            assert selection.routed_to[row] == ["names", "others"][guide.index(max(guide))]


def test_at_test_the_k_most_similar_prompts_serve() -> None:
    method, backbone = three_tasks()
    batch = training_batch(questions())
    queries = method.encoder.encode(questions())
    chosen = []
    with torch.no_grad(), method.select(backbone, batch) as selection:
        assert selection.slots is not None
        for row, query in enumerate(queries):
            ranked = sorted(range(3), key=lambda task: cosine(query, method.memory["text"][task]))
            assert selection.slots[row].tolist() == ranked[1:]
            chosen.append(tuple(ranked))
    assert len(set(chosen)) > 1  # the samples do differ


def test_the_chosen_prompts_stand_before_the_input() -> None:
    method, backbone = three_tasks()
    batch = training_batch(questions())
    prompts = [value.detach() * STEP * method.unit for value in method.parameters().values()]
    with torch.no_grad():
        with method.select(backbone, batch) as selection:
            found = backbone(batch)
        assert selection.slots is not None
        for row in (0, 4, 8):
            prefix = torch.cat([prompts[index] for index in selection.slots[row].tolist()])
            alone = training_batch([questions()[row]])
            words = backbone.language_model.get_input_embeddings()(alone.input_ids)
            whole = torch.cat([prefix.unsqueeze(0), words], dim=1)
            hidden = backbone.language_model(inputs_embeds=whole).last_hidden_state[:, len(prefix) :]
            logits = backbone.model.lm_head(hidden)[0, :-1][alone.labels[0, 1:] != -100]
            torch.testing.assert_close(found.logits[found.rows == row], logits, rtol=1e-4, atol=1e-4)


def test_training_puts_the_current_prompt_last_behind_the_most_similar_earlier_ones() -> None:
    method, backbone = built(replace(TINY, top_k=2))
    for index in range(2):
        learn_text(method, backbone, index, updates=8, rate=1e-2)
    method.begin_task(backbone, text_task(2))
    batch = training_batch(questions())
    queries = method.encoder.encode(questions())
    with method.select(backbone, batch) as selection:
        outputs = backbone(batch)
        assert selection.slots is not None
        for row, query in enumerate(queries):
            nearest = max(range(2), key=lambda task: cosine(query, method.memory["text"][task]))
            assert selection.slots[row].tolist() == [nearest, 2]
        method.loss(backbone, batch, outputs, selection).total.backward()
    gradients = {name: value.grad is not None for name, value in method.parameters().items()}
    assert not gradients["modal_prompts.prompt_0"]
    assert not gradients["modal_prompts.prompt_1"]
    assert gradients["modal_prompts.prompt_2"]
    assert gradients["modal_prompt_head.text.weight"]


def test_earlier_prompts_keep_their_bits_and_the_oracle_forgets_nothing() -> None:
    method, backbone = built(replace(TINY, top_k=2))
    learn_text(method, backbone, 0)
    learn_text(method, backbone, 1)
    batch = replace(training_batch(questions()), oracle_task="forms")
    with torch.no_grad(), method.select(backbone, batch):
        before = backbone(batch).logits
    kept = copy_tensors({**method.parameters(), **method.memory})
    learn_text(method, backbone, 2)
    now = {**method.parameters(), **{name: value[:2] for name, value in method.memory.items()}}
    assert all(torch.equal(now[name], value) for name, value in kept.items())
    with torch.no_grad(), method.select(backbone, batch) as selection:
        assert torch.equal(backbone(batch).logits, before)
        assert selection.slots is not None
        assert set(selection.slots[:, -1].tolist()) == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"image_share": 1.5}, "image_share is 1.5"),
        ({"text_pull": -1.0}, "text_pull is -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModalPromptConfig(**options)  # type: ignore[arg-type]
