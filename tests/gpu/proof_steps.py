"""Training steps of a random LLaVA-1.5-7B: the frozen bound, peft's LoRA, ours, and methods after four tasks."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from proof_card import matrix_product
from proof_model import OPTIMIZER, RandomLlava, at_task, task_rows, training_batch, update
from proof_record import Facts, Record
from proof_scale import Scale, forget_peak, peak_gib, timed
from transformers import CLIPImageProcessorPil

from components.training.engine import TorchEngine, trainable_parameters

PLACES = {
    "o_proj": r".*language_model.*\.self_attn\.o_proj",
    "all_linear": r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
}
# The precision of adapters' arithmetic, as a run chooses it (options of the backbone); the first is a GPU's default.
FAST: dict[str, Any] = {"adapter_compute": "bfloat16"}
PRECISIONS: dict[str, dict[str, Any]] = {
    "bfloat16": FAST,
    "TF32": {"adapter_compute": "float32", "float32_matmul": "high"},
    "float32": {"adapter_compute": "float32", "float32_matmul": "highest"},
}
SAME_LOSS = 0.02  # relative, of two bfloat16 forward passes


@contextmanager
def random_llava(record: Record, scale: Scale, folder: Path) -> Iterator[RandomLlava]:
    """The model, with a line about it. An error while it is made ends the part: there is nothing to measure then."""
    forget_peak(scale)
    llava = RandomLlava(scale, folder / "random")
    parameters = sum(parameter.numel() for parameter in llava.model.parameters())
    record.say("the random model", parameters=parameters, peak_gib=peak_gib(scale))
    yield llava


def steps(record: Record, scale: Scale, folder: Path) -> None:
    """Frozen bound, plain peft and sequential LoRA. `times` is relative to peft's plain loop on the same layers."""
    with random_llava(record, scale, folder) as llava:
        stand = Stand(record, llava)
        small, large = scale.ranks
        stand.bound()
        stand.bound(checkpointing=True)
        for place, rank in (("o_proj", small), ("all_linear", small), ("all_linear", large)):
            plain, ours = f"peft, {place}, rank {rank}", f"ours, {place}, rank {rank}"
            options = {"targets": place, "rank": rank}
            stand.peft(plain, place, rank, autocast=False)
            stand.peft(f"{plain}, autocast", place, rank, autocast=True, against=plain)
            for precision, chosen in PRECISIONS.items():
                stand.method(f"{ours}, {precision}", "sequential_lora", options, against=plain, **chosen)
        spared = {**FAST, "gradient_checkpointing": True}
        stand.method(f"{ours}, checkpointing", "sequential_lora", options, against=plain, **spared)


def methods(record: Record, scale: Scale, folder: Path) -> None:
    """Methods in their last of some tasks; `times` is relative to sequential LoRA on the same layers there."""
    with random_llava(record, scale, folder) as llava:
        stand = Stand(record, llava)
        rank, depth = scale.ranks[0], scale.depth
        for place in PLACES:
            options = {"targets": place, "rank": rank}
            stand.method(f"sequential_lora, {place}", "sequential_lora", options, depth=depth)
        for name, place in (("continual_llava", "o_proj"), ("lcia", "o_proj"), ("moelora", "all_linear")):
            base = f"sequential_lora, {place}"
            stand.method(f"{name}, {place}", name, {"targets": place}, depth=depth, against=base)
        dropped: dict[str, object] = {"targets": "all_linear", "dropout": 0.05}
        stand.method("moelora, all_linear, dropout 0.05", "moelora", dropped, depth=depth, against=base)


class Stand:
    """Times steps on one micro batch, and says what they are in relation to the card's limit.

    `mfu` counts the frozen matrices' forward pass and input gradients (`RandomLlava.flops`), per second of a step, over
    the rate of a bfloat16 matrix product on this card a moment ago. Adapters' own work and a second forward pass count
    as time only.
    """

    def __init__(self, record: Record, llava: RandomLlava) -> None:
        self.record, self.llava, self.scale = record, llava, llava.scale
        self.batch = training_batch(llava.encoder, self.scale)
        self.flops = llava.flops(self.batch)
        _, self.limit = matrix_product(self.scale, torch.bfloat16)
        self.medians: dict[str, float] = {}
        with llava.backbone() as model, torch.no_grad():
            self.loss = float(model(self.batch.to(model.device)).loss)

    def bound(self, *, checkpointing: bool = False) -> None:
        """The frozen model forward, and back to its first layer's input: no step can be faster."""
        what = "frozen model" + (", checkpointing" if checkpointing else "")
        with (
            self.record.measuring(what, budget_s=40) as facts,
            self.llava.backbone(gradient_checkpointing=checkpointing) as model,
        ):
            embedding = model.language_model.get_input_embeddings()
            hook = embedding.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))
            model.train()
            batch = self.batch.to(model.device)
            try:
                self._time(facts, what, lambda: model(batch).loss.backward())
            finally:
                hook.remove()

    def peft(self, what: str, place: str, rank: int, *, autocast: bool, against: str | None = None) -> None:
        """peft's LoRA in a plain loop over the plain Hugging Face model."""
        with self.record.measuring(what, budget_s=40) as facts, self.llava.bare() as model:
            net = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PLACES[place])).train()
            trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-4)
            inputs = self._plain_inputs()

            def loss() -> torch.Tensor:
                with torch.autocast(self.scale.device, torch.bfloat16) if autocast else nullcontext():
                    return net(**inputs).loss

            def step() -> None:
                loss().backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            self._require_same(float(loss().detach()))
            facts["trainable"] = sum(parameter.numel() for parameter in trained)
            self._time(facts, what, step, against=against)

    def method(
        self,
        what: str,
        name: str,
        options: dict[str, object],
        *,
        depth: int = 1,
        against: str | None = None,
        **backbone: object,
    ) -> None:
        """A method's update as a training worker makes it, with options of the backbone."""
        with self.record.measuring(what, budget_s=40) as facts, self.llava.backbone(**backbone) as model:
            method = at_task(model, name, self.scale, self.llava.encoder, depth=depth, options=options)
            engine = TorchEngine(model, OPTIMIZER, rates=method.learning_rates())
            facts["trainable"] = sum(parameter.numel() for parameter in trainable_parameters(model).values())
            self._time(facts, what, lambda: update(engine, model, method, [self.batch]), against=against)
            engine.close()

    def _time(self, facts: Facts, what: str, step: Callable[[], object], *, against: str | None = None) -> None:
        forget_peak(self.scale)
        facts["step_s"] = seconds = timed(step, self.scale)
        self.medians[what] = seconds[0]
        facts["tokens_s"] = self.batch.input_ids.numel() / seconds[0]
        facts["mfu"] = self.flops / seconds[0] / self.limit
        facts["peak_gib"] = peak_gib(self.scale)
        if against in self.medians:
            facts["times"] = seconds[0] / self.medians[against]

    def _plain_inputs(self) -> dict[str, torch.Tensor]:
        """The batch as the Hugging Face model takes it, with pixels of transformers' own image processor."""
        processor = CLIPImageProcessorPil.from_pretrained(self.llava.folder)
        rows = task_rows(self.llava.encoder, self.scale, 0, self.scale.rows)
        pictures: list[Image.Image] = [Image.open(io.BytesIO(row.image)) for row in rows if row.image is not None]
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        device = self.scale.device
        return {
            "input_ids": self.batch.input_ids.to(device),
            "attention_mask": self.batch.attention_mask.to(device),
            "labels": self.batch.labels.to(device),
            "pixel_values": pixels.to(device, torch.bfloat16),
        }

    def _require_same(self, loss: float) -> None:
        """Contestants that do not compute the same thing have no common time."""
        apart = abs(loss - self.loss) / self.loss
        assert apart < SAME_LOSS, f"its loss is {loss:.4f} where ours is {self.loss:.4f} on the same rows"
