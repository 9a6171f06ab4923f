"""Options and learning rates that papers and their released code use on LLaVA-1.5, by benchmark and method.

Where paper and code differ, the code counts. A method without a published run on a benchmark takes what its own code
uses elsewhere, and a plain LoRA method the LoRA of that benchmark's scripts; prompts and other parameters that are not
LoRA's keep their own rate, whose unit is theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from components.methods.options.base import MethodConfig
from components.methods.options.sequential_lora import SequentialLoraConfig
from components.training.config import RunConfig

Benchmark = Literal["coast", "coin"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """How one method is run."""

    rate: float | None
    """AdamW's peak rate; None: the method's own default here."""
    options: Mapping[str, Any] = field(default_factory=dict)


# LoRA of zackschen/CoIN's scripts (4122465), which are LLaVA's finetune_lora.sh: rank 128, alpha 256, dropout 0.05 on
# every linear layer of the language model, 2e-4; the projector is trained at a tenth of it (2e-5).
LORA = {"rank": 128, "alpha": 256.0, "dropout": 0.05, "targets": "all_linear"}
COIN_LORA = Published(rate=2e-4, options={**LORA, "train_projector": True, "projector_rate": 0.1})
# Traces of the authors' code (pear-blossoms/cv805, a fork): 2e-5 for all tasks and for the scalars w, queries from
# nli-roberta-base-v2. What else it sets (8 slots a task, rank 8, 4 selected, keys in 4 groups) is the method's default.
CONTINUAL_LLAVA = Published(
    rate=2e-5,
    options={"sentence_encoder": "sentence-transformers/nli-roberta-base-v2", "contextual_learning_rate": None},
)

BY_METHOD: dict[Benchmark, dict[str, Published]] = {
    "coast": {"continual_llava": CONTINUAL_LLAVA},
    "coin": {
        "continual_llava": CONTINUAL_LLAVA,
        # clit/coinmoelora of the same repository: 8 experts that share rank 128, scale alpha / rank.
        "moelora": Published(rate=2e-4, options={**LORA, "num_experts": 8}),
        # JingyangQiao/CoIN (efa9cb4): CoIN's LoRA with averages of kappa 2, groups from similarity 0.9.
        "lcia": Published(rate=2e-4, options={**LORA, "kappa": 2.0, "threshold": 0.9}),
    },
}
# On other benchmarks, by the methods' own code; the sources are in their cards.
ELSEWHERE = {
    "moelora": Published(rate=2e-4, options={**LORA, "num_experts": 8}),
    "lcia": Published(rate=2e-4, options=LORA),
    "cl_moe": Published(rate=2e-4),
    "smolora": Published(rate=1e-4, options={"dropout": 0.05}),
    "keep_lora": Published(rate=2e-4),  # UCIT's configuration; MLLM-DCL's has 2e-5
    "o_lora": Published(rate=1e-3),  # the scripts, at scale 4 and rank 8
    "reg_lora": Published(rate=2e-4, options={"penalty_weight": 2500.0}),
}


def published(benchmark: Benchmark, method: MethodConfig) -> Published:
    """How `method` is run on `benchmark`."""
    found = BY_METHOD[benchmark].get(method.name, ELSEWHERE.get(method.name))
    if found is not None:
        return found
    if not isinstance(method, SequentialLoraConfig):
        return Published(rate=None)
    trains_projector = benchmark == "coin" and method.name in ("sequential_lora", "joint")
    return COIN_LORA if trains_projector else Published(rate=2e-4, options=LORA)


def as_published(run: RunConfig, benchmark: Benchmark) -> RunConfig:
    """`run` with the published options and rate of its method."""
    found = published(benchmark, run.method)
    known = {item.name for item in dataclasses.fields(run.method)}
    method = replace(run.method, **{name: value for name, value in found.options.items() if name in known})
    optimizer = replace(run.training.optimizer, learning_rate=found.rate)
    return replace(run, method=method, training=replace(run.training, optimizer=optimizer))
