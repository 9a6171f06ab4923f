"""Long replies of many lengths: places that are filled again, against batches that wait for their longest reply.

    python tests/benchmarks/refilling.py [--repeats 2] [--rows 32] [--batch 8] [--new-tokens 48]

`smol` with untrained LoRA of rank 32, in one process and on one thread; times are the process's own. Few of its replies
end by themselves, so the token that spreads their lengths most counts as the end, on both sides, which give the same
replies. Rows leave their batch on both sides. Aim: 1.2 times as quick.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial

import torch

from components.data.stream_config import StreamConfig
from components.data.streams import open_stream
from components.evaluation.generation import answer, prompts
from tests.benchmarks.bars import print_bar
from tests.benchmarks.contestants import untrained
from tests.benchmarks.turns import in_turns

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    given = parser.parse_args()
    model, encoder, method = untrained()
    stream = open_stream(StreamConfig(name="mini-coin", size="nano"))
    rows = [row for task in stream.tasks for row in task.test.rows(limit=1 + given.rows // len(stream.tasks))]
    examples = [encoder.prompt_example(row) for row in rows[: given.rows]]
    batch = prompts(examples, encoder, CPU, None)
    with torch.inference_mode(), method.select(model, batch):
        whole = model.generate(batch, max_new_tokens=given.new_tokens, rows_leave=True)
    model.end_id = spreading(whole, given.new_tokens)
    lengths = sorted(places(whole, model.end_id, given.new_tokens))
    print(f"{len(lengths)} replies of {lengths[0]} to {lengths[-1]} tokens, on average {statistics.mean(lengths):.0f}")
    ask = partial(
        answer, model, method, encoder, examples, batch_size=given.batch, max_new_tokens=given.new_tokens, device=CPU
    )
    sides = {refill: partial(ask, refill=refill) for refill in (False, True)}
    times, answers = in_turns(sides, given.repeats)
    replies = {refill: [each.text for each in found] for refill, found in answers.items()}
    assert replies[True] == replies[False]
    each = {refill: 1e3 * statistics.median(spent) / len(examples) for refill, spent in times.items()}
    print(f"{each[True]:.0f} ms a reply, {each[False]:.0f} in batches of {given.batch}; the same replies")
    ratios = [slow / quick for slow, quick in zip(times[False], times[True], strict=True)]
    reason = "where products take most of a step, each row costs alike, and an empty place costs little"
    print_bar("long replies whose places are filled again, times as quick", ratios, "at least", 1.2, reason)


def places(replies: Sequence[Sequence[int]], token: int, most: int) -> list[int]:
    """By reply, how many tokens it has until `token` ends it."""
    return [list(ids).index(token) + 1 if token in ids else min(len(ids) + 1, most) for ids in replies]


def spreading(replies: Sequence[Sequence[int]], most: int) -> int:
    """The token as whose end replies are of the most different lengths."""
    tokens = sorted({token for ids in replies for token in ids})
    return max(tokens, key=lambda token: statistics.pstdev(places(replies, token, most)))


if __name__ == "__main__":
    main()
