"""How large the buffers are that DeepSpeed exchanges numbers through. Plain arithmetic: a plan asks for them, too."""

from __future__ import annotations

from collections.abc import Sequence

LEAST = 1_000_000  # numbers in a bucket: below it messages are no faster
MOST = 500_000_000  # DeepSpeed's own default, which it allocates however little trains


def zero_buckets(trainable: Sequence[int], frozen: Sequence[int], stage: int) -> dict[str, int]:
    """DeepSpeed's options under `zero_optimization`, from the sizes of what trains and of what is frozen, per tensor.

    Buckets hold numbers, not bytes: gradients are float32. One bucket takes all gradients of the few per mille that
    adapters are of a model. Under ZeRO-3 the next tensors are fetched while the present ones compute, as many as the
    largest holds. Norms and biases are so small that fetching them takes longer than keeping them: frozen tensors
    stay whole on every rank up to a size below that of the smallest which trains, for that must be sharded.
    """
    bucket = min(max(sum(trainable), LEAST), MOST)
    bucket += bucket % 2  # DeepSpeed wants pairs: two half-precision numbers are one aligned word
    if stage != 3:
        return {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    small = [size for size in frozen if size < min(trainable, default=0)]
    return {
        "reduce_bucket_size": bucket,
        "stage3_prefetch_bucket_size": min(max(max(frozen, default=0), LEAST), MOST),
        "stage3_param_persistence_threshold": min(max(small, default=0), LEAST // 10),
    }
