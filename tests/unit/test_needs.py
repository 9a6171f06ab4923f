"""What a run needs, against arithmetic written out here and against what PyTorch keeps; and what is refused for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from llava_configuration import write_configuration
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from components.core.errors import ConfigError
from components.methods import METHODS, options_for
from components.methods.base import MethodConfig, TaskInfo
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.backbone import load_backbone
from components.models.config import BackboneConfig
from components.models.shape import ModelShape
from components.training.buckets import zero_buckets
from components.training.config import ClusterConfig
from components.training.counting import counted
from components.training.devices import Devices
from components.training.forecast import assumed_speed, row_operations, rows_answered
from components.training.memory import GIB, Load, memory_plan
from components.training.needs import close_to_limit, needs_of, require_fit
from components.training.plan import Plan, plan_stream
from components.training.plan_facts import found_in_the_cluster
from pipelines import coast
from pipelines.littoral import guarded
from pipelines.presets import preset
from tests.families import tiny

# LLaVA-1.5-7B as published: 32 layers of width 4096 with an MLP of 11008, 32 heads of 128, two tables of 32064 words, a
# CLIP-L tower of 24 layers of width 1024 and an MLP of 4096 over 24 x 24 patches of 14 x 14 pixels.
LAYERS, WIDTH, MLP, WORDS = 32, 4096, 11008, 32064
TOWER_LAYERS, TOWER_WIDTH, TOWER_MLP, PATCHES = 24, 1024, 4096, 24 * 24
DECODER_LAYER = 4 * WIDTH * WIDTH + 3 * WIDTH * MLP
DECODER = LAYERS * (DECODER_LAYER + 2 * WIDTH) + WIDTH
TOWER_LAYER = 4 * (TOWER_WIDTH * TOWER_WIDTH + TOWER_WIDTH) + 2 * TOWER_WIDTH * TOWER_MLP + TOWER_MLP + TOWER_WIDTH
TOWER = TOWER_LAYERS * (TOWER_LAYER + 4 * TOWER_WIDTH) + (3 * 14 * 14 + 1 + PATCHES + 1 + 4) * TOWER_WIDTH
PROJECTOR = TOWER_WIDTH * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH
WEIGHTS = DECODER + 2 * WORDS * WIDTH + TOWER + PROJECTOR

# Bytes kept per token and layer with frozen bfloat16 weights: a float32 copy at each of two norms; queries, keys,
# values and the output of attention; the MLP's gate before and after its activation, and what it is multiplied with.
KEPT = 2 * 4 * WIDTH + 4 * 2 * WIDTH + 3 * 2 * MLP
ROWS, TOKENS, SUPERVISED = 4, 660, 17


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    """LLaVA-1.5-7B without weights."""
    return BackboneConfig(name=str(write_configuration(tmp_path_factory.mktemp("hub") / "llava")), dtype="bfloat16")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LITTORAL_CACHE", str(tmp_path_factory.getbasetemp() / "needs-cache"))
        yield


@pytest.fixture(scope="module")
def seven(llava: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A run of it."""
    return plan_for(llava, tmp_path_factory.mktemp("runs"))


def load_of(**other: object) -> Load:
    plain = Load(
        num_workers=1,
        engine="deepspeed",
        zero_stage=2,
        micro_batch_size=ROWS,
        checkpointing=False,
        compute_width=2,
        eager=False,
        train_tokens=TOKENS,
        supervised=SUPERVISED,
        evaluation_batch_size=16,
        prompt_tokens=640,
        new_tokens=16,
        num_tasks=1,
        features_cached=True,
        on_gpu=True,
    )
    return replace(plain, **other)  # type: ignore[arg-type]


def test_the_numbers_of_llava(llava: BackboneConfig) -> None:
    shape = counted(llava, SequentialLoraConfig()).shape
    assert (shape.weights, shape.linear, shape.tower) == (WEIGHTS, LAYERS * DECODER_LAYER, TOWER)
    assert shape.layer_bytes(TOKENS, eager=False) == KEPT
    assert shape.tower_tokens == PATCHES + 1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("targets", "rank"), [("o_proj", 32), ("all_linear", 128)])
def test_learning_takes_what_is_computed_by_hand(
    llava: BackboneConfig, targets: str, rank: int, checkpointing: bool
) -> None:
    if targets == "o_proj":
        trained, read, ranks = LAYERS * rank * 2 * WIDTH, WIDTH, rank
    else:  # q, k and v share an input, and so do gate and up
        trained = LAYERS * rank * (4 * 2 * WIDTH + 3 * (WIDTH + MLP))
        read, ranks = 3 * WIDTH + MLP, 7 * rank
    kept = KEPT + 2 * (read + ranks)  # adapters compute in bfloat16
    tokens = ROWS * TOKENS
    activations = LAYERS * tokens * kept if not checkpointing else tokens * (LAYERS * 2 * WIDTH + kept)
    # Float32 values with a bfloat16 copy, gradients, two moments, DeepSpeed's own float32 copy, and one bucket.
    of_trained = trained * (4 + 2 + 4 + 8 + 4 + 4)
    logits = ROWS * SUPERVISED * WORDS * (2 * 2 + 3 * 4)
    by_hand = 2 * WEIGHTS + activations + of_trained + logits + GIB

    method = SequentialLoraConfig(targets=targets, rank=rank)
    found = memory_plan(counted(llava, method), load_of(checkpointing=checkpointing))
    assert sum(found.training.values()) == pytest.approx(by_hand, rel=0.01)
    assert found.training["DeepSpeed's bucket"] == 4 * zero_buckets([trained], [], 2)["reduce_bucket_size"]


def test_answering_takes_what_is_computed_by_hand(llava: BackboneConfig) -> None:
    cache = 2 * LAYERS * WIDTH * 2 * 16 * (640 + 16)
    prefill = 16 * 640 * 2 * (3 * MLP + 4 * WIDTH)
    by_hand = 2 * WEIGHTS + cache + prefill + 4 * LAYERS * 32 * 2 * WIDTH + GIB
    found = memory_plan(counted(llava, SequentialLoraConfig(rank=32)), load_of())
    assert sum(found.answering.values()) == pytest.approx(by_hand, rel=0.05)


# docs/results/first-look-h200.md, without gradient checkpointing and with plain PyTorch: GiB at the peak. Rank 128 was
# measured when q, k and v, and gate and up, each cast their input to float32 for themselves.
@pytest.mark.parametrize(
    ("method", "measured", "casts_apart"),
    [
        (SequentialLoraConfig(rank=32), 25.2, 0),
        (SequentialLoraConfig(rank=128, targets="all_linear"), 39.0, 3 * WIDTH),
        (METHODS["moelora"](), 36.3, 3 * WIDTH),
        (METHODS["keep_lora"](), 24.0, 0),
        (METHODS["l2p"](), 24.3, 0),
    ],
    ids=["o_proj", "all_linear", "moelora", "keep_lora", "l2p"],
)
def test_a_measured_gpu_agrees(llava: BackboneConfig, method: MethodConfig, measured: float, casts_apart: int) -> None:
    load = load_of(engine="torch", compute_width=4)
    planned = sum(memory_plan(counted(llava, method), load).training.values()) - GIB  # PyTorch's own count
    planned += LAYERS * ROWS * TOKENS * casts_apart * 4
    assert planned / GIB == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_layers_keep_what_autograd_keeps(kernel: str, dtype: torch.dtype) -> None:
    """The bytes that PyTorch saves for one more frozen layer."""
    kept = [_saved(kernel, dtype, layers) for layers in (1, 2)]
    shape = ModelShape(
        weights=0,
        linear=0,
        width=dtype.itemsize,
        layers=1,
        hidden=64,
        intermediate=176,
        heads=4,
        key_value_heads=4,
        head_size=16,
        vocabulary=40,
        tower=0,
        tower_layers=0,
        tower_hidden=0,
        tower_tokens=0,
    )
    planned = 2 * 48 * shape.layer_bytes(48, eager=kernel == "eager")
    assert planned == pytest.approx(kept[1] - kept[0], rel=0.02)


def _saved(kernel: str, dtype: torch.dtype, layers: int) -> int:
    """Bytes of all storages but weights that the backward pass of a batch of 2 x 48 tokens needs."""
    config = LlamaConfig(
        vocab_size=40,
        num_hidden_layers=layers,
        hidden_size=64,
        intermediate_size=176,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    config._attn_implementation = kernel
    model = cast(nn.Module, LlamaForCausalLM(config).model).to(dtype).requires_grad_(False)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    inputs = torch.randn(2, 48, 64, dtype=dtype, requires_grad=True)
    held: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # alive, so that no two storages have one address
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(inputs_embeds=inputs, use_cache=False)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(size for address, size in storages.items() if address not in weights)


@pytest.mark.parametrize("name", sorted(name for name, kind in METHODS.items() if kind.is_trainable))
def test_what_trains_is_counted_as_it_is(name: str) -> None:
    """Against the method on the real model."""
    backbone = BackboneConfig(name="pocket")
    options = METHODS[name].tiny()
    size = counted(backbone, options).method
    assert size is not None
    model = load_backbone(backbone)
    method = options.build(seed=0)
    method.attach(model, None)
    method.begin_task(model, TaskInfo(index=0, name="one", instructions=["What colour?"]))
    trains = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(size.trainable) == sorted(trains)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_model_type_is_counted(name: str, tmp_path: Path) -> None:
    """Weights, decoder and what trains, against the model with its weights; a plan has a size for all that there is."""
    backbone = BackboneConfig(name=str(tiny.write(name, tmp_path / name)))
    found = counted(backbone, SequentialLoraConfig(rank=2))
    model = load_backbone(backbone)
    assert found.shape.weights == sum(parameter.numel() for parameter in model.model.parameters())
    method = SequentialLoraConfig(rank=2).build(seed=0)
    method.attach(model, None)
    method.begin_task(model, TaskInfo(index=0, name="one", instructions=["What colour?"]))
    assert found.method is not None
    assert sum(found.method.trainable) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.shape.cache_bytes > 0
    assert (found.shape.tower > 0) == (name not in tiny.TEXT_ONLY)
    planned = memory_plan(found, load_of())
    assert {"frozen weights", "activations", "logits"} <= set(planned.training)
    assert {"prefill", "keys and values"} <= set(planned.answering)


def test_stages_share_what_they_shard(llava: BackboneConfig) -> None:
    number = counted(llava, SequentialLoraConfig(rank=128, targets="all_linear"))
    assert number.method is not None
    trained = sum(number.method.trainable)
    plans = {stage: memory_plan(number, load_of(num_workers=8, zero_stage=stage)).training for stage in (0, 2, 3)}
    assert plans[0]["optimizer"] == 8 * trained
    assert plans[2]["optimizer"] == 12 * trained // 8
    assert plans[2]["gradients"] == 4 * trained // 8
    assert plans[2]["frozen weights"] == 2 * WEIGHTS
    largest = WORDS * WIDTH  # of all tensors: what ZeRO-3 fetches ahead
    assert plans[3]["frozen weights"] == 2 * WEIGHTS // 8 + 2 * largest


def test_time_is_operations_over_the_assumed_speed(seven: Plan) -> None:
    needs = needs_of(seven)  # without a GPU here it is planned for an H100: 989 TFLOP/s, of which a third is assumed
    trained = LAYERS * 32 * 2 * WIDTH  # sequential LoRA's default
    seconds = 0.0
    for each in seven.schedule:
        tokens = seven.fitted.tokens[f"{each.task.name} train"].mean
        forward = tokens * LAYERS * (2 * DECODER_LAYER + 4 * WIDTH * tokens)
        # Forward, again for checkpointing, and the gradients of activations; the adapter has gradients of its own too.
        seconds += each.num_updates * 32 * (3 * forward + 4 * 2 * trained * tokens) / (0.33 * 989e12)
    assert needs.forecast is not None
    assert needs.forecast.training_s == pytest.approx(seconds, rel=0.001)
    answered = {name: rows for name, (rows, _) in rows_answered(seven).items()}
    # 16 test rows a task before training, and after each of the four tasks from its own on.
    assert list(answered.values()) == [16 * 5, 16 * 4, 16 * 3, 16 * 2]


def test_an_h200_was_as_fast_as_is_assumed(llava: BackboneConfig) -> None:
    """docs/results/first-look-h200.md: 0.207 s for a micro batch of 4 x 660 tokens, without checkpointing."""
    number = counted(llava, SequentialLoraConfig(rank=32))
    devices = Devices(gpus=1, name="NVIDIA H200")
    speed = assumed_speed(devices, on_gpus=True, dtype="bfloat16", layers=LAYERS, threads=1)
    assert speed is not None
    operations = ROWS * row_operations(number, load_of(), TOKENS)
    assert operations / speed.per_second == pytest.approx(0.207, rel=0.1)
    unknown = Devices(gpus=1, name="Some Card")
    assert assumed_speed(unknown, on_gpus=True, dtype="bfloat16", layers=LAYERS, threads=1) is None


# ---- what is refused ---------------------------------------------------------------------------------------------


def plan_for(llava: BackboneConfig, storage: Path, **cluster: object) -> Plan:
    run = preset("llava-7b")
    run = replace(
        run,
        run_id="seven",
        storage=storage,
        backbone=replace(run.backbone, name=llava.name),
        stream=preset("pocket").stream,
        method=options_for("sequential_lora", llava),
        cluster=ClusterConfig(**cluster),  # type: ignore[arg-type]
    )
    return plan_stream(run)


def test_a_large_model_on_a_cpu(llava: BackboneConfig, seven: Plan, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"7\.1e\+09 weights in bfloat16 and there is no GPU"):
        require_fit(seven, needs_of(seven))
    asked = plan_for(llava, tmp_path, use_gpu=False)
    require_fit(asked, needs_of(asked))


def test_a_gpu_that_is_too_small(seven: Plan) -> None:
    needs = replace(needs_of(seven), on_gpus=True, no_gpu_for_it=False)
    needed = needs.memory.needed
    batch, weights = r"lower evaluation\.batch_size \(now 16\) or set", "its frozen weights alone take 13, so take a"
    for share, refused, near in ((0.3, weights, False), (0.7, batch, False), (0.97, "", True), (1.5, "", False)):
        card = replace(needs, devices=Devices(gpus=1, name="NVIDIA L4", memory=int(share * needed)))
        assert (close_to_limit(card) is not None) == near
        if refused:
            with pytest.raises(ConfigError, match=f"NVIDIA L4 has .* {refused}"):
                require_fit(seven, card)
        else:
            require_fit(seven, card)
    several = replace(seven, config=replace(seven.config, cluster=ClusterConfig(num_workers=2)))
    with pytest.raises(ConfigError, match="num_workers is 2, each with a GPU, and the number of GPUs is 1"):
        require_fit(several, replace(needs, devices=Devices(gpus=1, name="NVIDIA H100", memory=2 * needed)))


def test_a_dry_run_of_a_configuration(
    llava: BackboneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("llava-7b", "--backbone.name", llava.name, "--storage", str(tmp_path / "runs"), "--dry-run")
    code = guarded(lambda: coast.main([*arguments, "--stream.size", "nano", "--method", "sequential-lora"]))
    said = capsys.readouterr()
    table = said.out[said.out.index("GiB of each GPU") : said.out.index("in all without")].splitlines()
    assert all(len(line) <= 80 for line in table)
    assert table[1].split() == ["frozen", "weights", "13.16", "13.16"]
    assert "7.06 billion weights, bfloat16" in said.out
    assert "those of an H100" in said.out
    assert "no GPU" in said.err
    assert code == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "assumed"),
    [
        ((), "a GPU for each worker is assumed here"),
        (("--cluster.use-gpu", "true"), "a GPU for each worker is assumed here"),
        (("--cluster.use-gpu", "false"), "CPUs are assumed here"),
    ],
)
def test_the_plan_for_a_cluster_that_is_not_joined_says_what_it_assumes(
    options: tuple[str, ...], assumed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = ("--cluster.address", "127.0.0.1:6379", "--storage", str(tmp_path), "--dry-run")
    assert guarded(lambda: coast.main(["pocket", "--stream.size", "nano", *elsewhere, *options])) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"device: what the cluster has, known when it is joined; {assumed}" in said
    assert ("H100" in said) == ("GPU for" in assumed)
    plan = plan_stream(replace(preset("pocket"), run_id="first", storage=tmp_path))
    found = found_in_the_cluster(plan, replace(needs_of(plan), devices=Devices(gpus=0)))
    assert found.startswith("in this cluster: device CPU (there is no GPU); precision float32 adapters over float32")
    assert "GFLOP/s" in found
