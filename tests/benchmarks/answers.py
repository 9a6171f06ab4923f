"""Answers of a trained model against transformers' `generate` one by one, and bfloat16 against float32.

    python tests/benchmarks/answers.py [--repeats 3] [--updates 24] [--prompts 32]

LoRA of rank 32 on `smol` learns a few updates of mini-COAST's domain tasks, so that replies end by themselves. Then, in
one process and on one thread, contestants take turns; times are the process's own.

- **one by one**: transformers' own `generate` gets one row at a time, with the picture's features computed before and
  without the project's kernels. Aim: 2.5 times its time for the same replies in batches of 16, all in float32.
- **bfloat16**: an update and the answers, against float32's. Aim: at most 0.5 and 0.35 of the time. Its replies may
  differ; how many are the same is printed, and so are the first losses. A processor whose products in bfloat16 are not
  quicker, as `backbone.dtype auto` finds, has no figures here: they would take an hour.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from components.data.batch import Example, collate
from components.evaluation.generation import answer
from components.methods.base import Method
from components.models.backbone import Backbone, load_backbone
from components.models.config import BackboneConfig
from components.models.encoding import Encoder
from components.models.source import model_source
from components.training.dtype_probe import probed
from components.training.engine import TorchEngine
from components.training.optimizer import OptimizerConfig
from tests.benchmarks.bars import print_bar, print_unmeasured
from tests.benchmarks.contestants import Data, adapted, lora_config
from tests.benchmarks.turns import in_turns, timed

RATE, ROWS, NEW_TOKENS, BATCH = 1e-3, 4, 8, 16

Contestant = Callable[[], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BackboneConfig(name="smol")
    data = Data(config, num_batches=4 * options.updates // ROWS, num_prompts=options.prompts)
    model, method = adapted(lora_config(), config, data, task=0)
    engine = TorchEngine(model, OptimizerConfig(learning_rate=RATE))
    batches = [examples[:ROWS] for examples in data.features]
    for number in range(options.updates):
        update(engine, method, data.encoder, batches[number % len(batches)])
    probe = probed()
    narrow = lower = None
    if probe.dtype == "bfloat16":
        narrow, lower = load_backbone(replace(config, dtype="bfloat16")), lora_config().build(seed=0)
        lower.attach(narrow, method.state_dict(model))
        lower.begin_task(narrow, data.task_info(0))

    prompts = [prompt for part in data.prompts for prompt in part]
    plain = load_backbone(replace(config, float32_kernels="torch"))
    other = lora_config().build(seed=0)
    other.attach(plain, method.state_dict(model))
    other.begin_task(plain, data.task_info(0))
    contestants: dict[str, Contestant] = {
        "one by one": partial(one_by_one, model, method, data.encoder, prompts),
        f"batches of {BATCH}": partial(ours, model, method, data.encoder, prompts, BATCH),
        f"batches of {BATCH}, torch's products": partial(ours, plain, other, data.encoder, prompts, BATCH),
        f"batches of {2 * BATCH}": partial(ours, model, method, data.encoder, prompts, 2 * BATCH),
        "one by one, first token": partial(one_by_one, model, method, data.encoder, prompts, 1),
        f"batches of {BATCH}, first token": partial(ours, model, method, data.encoder, prompts, BATCH, 1),
    }
    alone, batched, kernels, larger, prompt_alone, prompt_batched = contestants
    bfloat16 = f"batches of {BATCH}, bfloat16"
    if narrow is not None and lower is not None:
        contestants[bfloat16] = partial(ours, narrow, lower, data.encoder, prompts, BATCH)
    times, replies = in_turns(contestants, options.repeats)
    tokenizer = model_source(config).processor_files().tokenizer
    lengths = sorted(len(tokenizer(reply)["input_ids"]) for reply in replies[alone])
    print(f"{len(prompts)} prompts of {min(map(size, prompts))} to {max(map(size, prompts))} tokens")
    print(f"replies of {lengths[0]} to {lengths[-1]} tokens, on average {statistics.mean(lengths):.1f}")
    for name, spent in times.items():
        equal = sum(mine == theirs for mine, theirs in zip(replies[name], replies[alone], strict=True))
        each = 1e3 * statistics.median(spent) / len(prompts)
        print(f"{name}: {each:.0f} ms a reply, {equal} of {len(prompts)} replies as one by one")
    assert replies[batched] == replies[kernels] == replies[larger] == replies[alone]

    def quicker(name: str, than: str) -> list[float]:
        return [slow / quick for slow, quick in zip(times[than], times[name], strict=True)]

    print(f"{larger}: {statistics.median(quicker(larger, alone)):.2f} times as quick as one by one")
    print(f"{kernels}: {statistics.median(quicker(kernels, alone)):.2f} times as quick as one by one")
    ms = {name: 1e3 * statistics.median(spent) / len(prompts) for name, spent in times.items()}
    first = (
        f"until its first token a reply takes {ms[prompt_alone]:.0f} of {ms[alone]:.0f} ms one by one, and "
        f"{ms[prompt_batched]:.0f} of {ms[batched]:.0f} in batches: reading prompts gains less than the rest"
    )
    print_bar("answers in batches of 16, times as quick as one by one", quicker(batched, alone), "at least", 2.5, first)
    update_bar, answers_bar = "an update in bfloat16 / float32", "answers in bfloat16 / float32"
    if narrow is None or lower is None:
        print_unmeasured((update_bar, answers_bar), str(probe))
        return
    # Last, since updates change the adapters that answer.
    steps = compare_steps(options.repeats, engine, method, narrow, lower, data.encoder, batches)
    print_bar(update_bar, steps, "at most", 0.5, "float32 adapters beside bfloat16 weights")
    print_bar(
        answers_bar,
        quicker(batched, bfloat16),
        "at most",
        0.35,
        f"float32 is quicker than it was: with torch's products {statistics.median(quicker(kernels, bfloat16)):.2f}",
    )


def compare_steps(
    repeats: int,
    engine: TorchEngine,
    method: Method,
    narrow: Backbone,
    same: Method,
    encoder: Encoder,
    batches: Sequence[Sequence[Example]],
) -> list[float]:
    """Time of an update in bfloat16 over that in float32, by repeat; prints the first losses."""
    other = TorchEngine(narrow, OptimizerConfig(learning_rate=RATE))
    wide, low = (
        partial(update, engine, method, encoder, batches[0]),
        partial(update, other, same, encoder, batches[0]),
    )
    first = wide(), low()
    print(f"loss on the same rows: float32 {first[0]:.4f}, bfloat16 {first[1]:.4f}")
    ratios: list[float] = []
    for _ in range(repeats):
        spent = [min(timed(step)[0] for _ in range(2)) for step in (wide, low)]
        ratios.append(spent[1] / spent[0])
    return ratios


def update(engine: TorchEngine, method: Method, encoder: Encoder, rows: Sequence[Example]) -> float:
    """One update on these rows; its loss."""
    model = engine.model
    engine.set_learning_rate(RATE)
    model.train()
    batch = collate(rows, pad_id=encoder.pad_id, padding_side="right")
    with ExitStack() as scope:
        outputs, selection = engine.forward(batch, partial(scope.enter_context, method.select(model, batch)))
        loss = method.loss(model, batch, outputs, selection)
        engine.backward(loss.total)
    method.step(engine)
    return float(loss.total.detach())


def ours(
    model: Backbone,
    method: Method,
    encoder: Encoder,
    prompts: Sequence[Example],
    size: int,
    new_tokens: int = NEW_TOKENS,
) -> list[str]:
    model.eval()
    cpu = torch.device("cpu")
    answers = answer(model, method, encoder, prompts, batch_size=size, max_new_tokens=new_tokens, device=cpu)
    return [each.text for each in answers]


def one_by_one(
    model: Backbone, method: Method, encoder: Encoder, prompts: Sequence[Example], new_tokens: int = NEW_TOKENS
) -> list[str]:
    """As a script that knows no batches does it, with the adapters in place."""
    model.eval()
    ends, texts = model.end_ids(), list[str]()
    for prompt in prompts:
        batch = collate([prompt], pad_id=encoder.pad_id, padding_side="left")
        with torch.inference_mode(), method.select(model, batch):
            inputs = model.inputs(batch)
            found = (
                cast(Any, model.model)
                .generate(
                    inputs_embeds=inputs.embeddings,
                    attention_mask=inputs.mask,
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    eos_token_id=ends,
                    pad_token_id=encoder.pad_id,
                )[0]
                .tolist()
            )
        stops = [place for place, token in enumerate(found) if token in ends]
        texts.append(encoder.decode(found[: stops[0]] if stops else found))
    return texts


def size(prompt: Example) -> int:
    return len(prompt.input_ids)


if __name__ == "__main__":
    main()
