"""A set of weights as a folder that `PeftModel.from_pretrained` loads, and the loading of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.adapters.low_rank import Factors, Increment
from components.core.errors import ExportError
from components.core.files import write_json
from components.exporting.served import Served, logits_of

if TYPE_CHECKING:
    from components.data.batch import Batch
    from components.models.backbone import Backbone

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # of every name in a PEFT file


def write_peft(folder: Path, served: Served, *, base: str) -> int:
    """Write adapter_config.json and adapter_model.safetensors into `folder`; the largest rank of a layer.

    Layers are named in full: vision towers have a q_proj too, and SGLang reads no regular expressions. Servers know one
    scale, lora_alpha / r; where layers differ, or the scale is no such quotient of whole numbers, it is in `lora_B`.
    """
    loras = {name: one_lora(increments) for name, increments in served.layers.items()}
    ranks = {name: len(lora.down) for name, lora in loras.items()}
    rank = max(ranks.values())
    alpha = _alpha(loras.values(), rank) if len(set(ranks.values())) == 1 else None
    if alpha is None:
        loras = {name: Factors(down=each.down, up=each.up * each.scale, scale=1.0) for name, each in loras.items()}
        alpha = rank
    others = {name: each for name, each in ranks.items() if each != rank}
    projector = {name.rpartition(".")[0].rpartition(".")[0] for name in served.projector}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=[*loras],
        rank_pattern=others,
        alpha_pattern=dict(others),  # scale 1 there too
        modules_to_save=sorted(projector) or None,
    )
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in served.projector.items()}
    for name, lora in loras.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": lora.down, f"{PREFIX}{name}.lora_B.weight": lora.up}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    config.save_pretrained(str(folder))
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    # peft keeps the names as a set, whose order differs from process to process
    write_json(folder / CONFIG, {**written, "target_modules": [*loras]})
    return rank


def one_lora(increments: Sequence[Increment]) -> Factors:
    """The sum of several as one: their ranks add up, since [up_1 up_2] [down_1; down_2] is the sum of the products."""
    factors = [each for each in increments if isinstance(each, Factors)]
    assert len(factors) == len(increments), "a dense increment is no LoRA"
    if len({each.scale for each in factors}) > 1:
        factors = [Factors(down=each.down, up=each.up * each.scale, scale=1.0) for each in factors]
    down, up = torch.cat([each.down for each in factors]), torch.cat([each.up for each in factors], dim=1)
    return Factors(down=down, up=up, scale=factors[0].scale)


def peft_logits(model: Backbone, folder: Path, batch: Batch) -> Tensor:
    """Predictions [S, vocabulary] float32 of the fresh `model` with the adapter in `folder`, loaded by plain peft.

    The model is as before afterwards. Raises `ExportError` for names that either side lacks.
    """
    stored = set(load_file(folder / WEIGHTS))
    try:
        loaded = PeftModel.from_pretrained(cast(Any, model.model), str(folder))
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"peft cannot load what was written ({' '.join(str(error).split())}).") from error
    wanted = set(get_peft_model_state_dict(loaded, save_embedding_layers=False))
    different = sorted(stored ^ wanted)
    if different:
        side = "is not in the model" if different[0] in stored else "is missing"
        raise ExportError(
            f"{len(different)} of the adapter's tensors do not fit the model, first {different[0]}, which {side}; peft "
            "would go on without them."
        )
    loaded.eval()
    try:
        return logits_of(model, batch)
    finally:
        cast(Any, loaded).unload()


def _alpha(loras: Sequence[Factors] | Any, rank: int) -> int | None:
    """The whole lora_alpha that gives every layer its scale, if there is one."""
    scales = {each.scale for each in loras}
    if len(scales) > 1:
        return None
    (scale,) = scales
    alpha = round(scale * rank)
    return alpha if alpha > 0 and alpha / rank == scale else None
