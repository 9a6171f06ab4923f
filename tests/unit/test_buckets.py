"""DeepSpeed's buffers follow what trains; what they cost is worked out by hand."""

from __future__ import annotations

from components.training.buckets import LEAST, zero_buckets


def test_buckets_are_as_large_as_what_trains() -> None:
    """LoRA of rank 128 on one 4096 x 4096 layer: 2 x 128 x 4096 = 1,048,576 numbers, 4 MiB of float32 gradients."""
    assert zero_buckets([128 * 4096, 4096 * 128], [4096 * 4096], 2) == {
        "reduce_bucket_size": 1_048_576,
        "allgather_bucket_size": 1_048_576,
    }
    assert zero_buckets([8, 8], [4096], 0)["reduce_bucket_size"] == LEAST
    assert zero_buckets([10**9], [4096], 2)["reduce_bucket_size"] == 5 * 10**8
    # a learned scalar makes the sum odd, which DeepSpeed refuses
    assert zero_buckets([LEAST, 3], [4096], 2)["allgather_bucket_size"] == LEAST + 4


def test_stage_3_fetches_ahead_what_the_largest_tensor_holds_and_keeps_norms_whole() -> None:
    options = zero_buckets([32 * 4096] * 2, [4096, 11008 * 4096, 32064 * 4096], 3)
    assert options == {
        "reduce_bucket_size": LEAST,
        "stage3_prefetch_bucket_size": 32064 * 4096,
        "stage3_param_persistence_threshold": 4096,
    }


def test_what_trains_is_always_sharded() -> None:
    """DeepSpeed keeps every tensor whole up to the threshold, whether it trains or not."""
    assert zero_buckets([3, 32 * 4096], [4096], 3)["stage3_param_persistence_threshold"] == 0
    assert zero_buckets([4096, 32 * 4096], [4096, 64], 3)["stage3_param_persistence_threshold"] == 64
