"""Options scored behind prompts that are read once, against prompt and option read together, as is common.

    python tests/benchmarks/options.py [--repeats 3] [--rows 16]

Questions of mini-CoIN's scienceqa, four options each, on `smol` with LoRA of rank 32, in one process and on one thread;
times are the process's own. **letters**: the options are A to D, of one token; **words**: they are what the question
lists. The other side reads every pair of a prompt and an option anew, 8 pairs at once, with the same kernels; both
give the same log-likelihoods. Aim: 3 times as quick for letters and 2.5 times for words. The time of generated replies
is printed beside it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from components.data.batch import IGNORE, Example, Limits, collate
from components.data.rows import Row
from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.evaluation.choosing import question_of
from components.evaluation.generation import prompts
from components.methods.base import Method
from components.metrics.choice import options_in
from components.models.backbone import Backbone
from components.models.encoding import Encoder
from components.models.products import quick_products
from tests.benchmarks.bars import print_bar
from tests.benchmarks.contestants import untrained
from tests.benchmarks.turns import in_turns, timed

BATCH, PAIRS, NEW_TOKENS, CPU = 16, 8, 8, torch.device("cpu")
Found = list[list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    given = parser.parse_args()
    model, encoder, method = untrained()
    stream = open_stream(StreamConfig(name="mini-coin", size="nano", order=("scienceqa",)))
    rows = list(stream.tasks[0].test.rows(limit=given.rows))
    examples = [encoder.prompt_example(row) for row in rows]
    lengths = [len(each.input_ids) for each in examples]
    print(f"{len(rows)} prompts of {min(lengths)} to {max(lengths)} tokens")
    for name, bar in (("letters", 3.0), ("words", 2.5)):
        options = [[encoder.reply_ids(row, text) for text in texts(row, name)] for row in rows]
        sizes = [len(ids) for of in options for ids in of]
        print(f"{name}: {len(sizes)} options of {min(sizes)} to {max(sizes)} tokens")
        sides: dict[str, Callable[[], Found]] = {
            "once": partial(once, model, method, encoder, examples, options),
            "anew": partial(anew, model, method, encoder, examples, options),
        }
        times, found = in_turns(sides, given.repeats)
        error = max(
            abs(one - other)
            for mine, theirs in zip(found["once"], found["anew"], strict=True)
            for one, other in zip(mine, theirs, strict=True)
        )
        assert error < 1e-3, f"log-likelihoods differ by {error}"
        each = {side: 1e3 * statistics.median(spent) / len(rows) for side, spent in times.items()}
        print(f"{name}: {each['once']:.0f} ms a row, anew {each['anew']:.0f}; log-likelihoods differ by {error:.1g}")
        ratios = [slow / quick for slow, quick in zip(times["anew"], times["once"], strict=True)]
        print_bar(f"options ({name}) behind prompts read once, times as quick as anew", ratios, "at least", bar)
    spent, _ = timed(partial(generated, model, method, encoder, examples))
    print(f"generated replies of at most {NEW_TOKENS} tokens: {1e3 * spent / len(rows):.0f} ms a row")


def texts(row: Row, name: str) -> list[str]:
    listed = options_in(question_of(row))
    return list(listed if name == "letters" else listed.values())


def once(
    model: Backbone,
    method: Method,
    encoder: Encoder,
    examples: Sequence[Example],
    options: Sequence[Sequence[Sequence[int]]],
) -> Found:
    found: Found = []
    for start in range(0, len(examples), BATCH):
        part = slice(start, start + BATCH)
        batch = prompts(examples[part], encoder, CPU, None)
        with torch.inference_mode(), method.select(model, batch):
            limits = Limits(BATCH)
            found += model.log_likelihoods(batch, options[part], limits=limits, rows_leave=method.rows_leave)
    return found


def anew(
    model: Backbone,
    method: Method,
    encoder: Encoder,
    examples: Sequence[Example],
    options: Sequence[Sequence[Sequence[int]]],
) -> Found:
    """Every pair as one row whose labels are the option's tokens."""
    pairs = [followed(example, ids) for example, of in zip(examples, options, strict=True) for ids in of]
    sums: list[float] = []
    model.eval()
    for start in range(0, len(pairs), PAIRS):
        batch = collate(pairs[start : start + PAIRS], pad_id=encoder.pad_id, padding_side="right")
        with torch.inference_mode(), quick_products("auto", CPU), method.select(model, batch):
            outputs = model(batch)
        each = outputs.logits.float().log_softmax(dim=-1).gather(1, outputs.targets[:, None])[:, 0]
        sums += torch.zeros(len(batch)).index_add(0, outputs.rows, each).tolist()
    left = iter(sums)
    return [[next(left) for _ in of] for of in options]


def followed(example: Example, ids: Sequence[int]) -> Example:
    behind = torch.tensor(ids)
    labels = torch.cat([torch.full_like(example.input_ids, IGNORE), behind])
    return replace(example, input_ids=torch.cat([example.input_ids, behind]), labels=labels)


def generated(model: Backbone, method: Method, encoder: Encoder, examples: Sequence[Example]) -> list[list[int]]:
    batch = prompts(examples, encoder, CPU, None)
    with torch.inference_mode(), method.select(model, batch):
        return model.generate(batch, max_new_tokens=NEW_TOKENS, rows_leave=method.rows_leave)


if __name__ == "__main__":
    main()
