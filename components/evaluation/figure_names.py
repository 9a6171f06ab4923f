"""Names of the figures of a score matrix: in papers and other code bases, and on screens."""

from __future__ import annotations

# The same figures under the names that papers and other code bases use. "Avg" is not here: some mean the mean
# average by it (HiDe-LLaVA), some the final average (LCIA). "Forgetting" of Continual-NExT is `forgetting_diagonal`.
ALIASES: dict[str, tuple[str, ...]] = {
    "final_average": ("MFN", "Last", "Avg.ACC", "AP", "ACC", "OP"),
    "immediate_average": ("MFT", "New.ACC", "Imd.", "learning accuracy"),
    "mean_average": ("MAA", "MAP"),
    "average_over_time": ("A_AUC", "area under the curve of the average accuracy", "anytime accuracy"),
    "bwt": ("BWT", "backward transfer"),
    "bwt_divisor_t": ("BWT of CoIN",),
    "forgetting": ("average forgetting", "Fgt", "max-based forgetting"),
    "forgetting_diagonal": ("Forgetting of Continual-NExT",),
    "forward_transfer": ("FWT", "zero-shot transfer"),
    "zero_shot_average": ("zero-shot",),
}

LABELS: dict[str, str] = {
    "final_average": "Final average (MFN, Last)",
    "immediate_average": "Immediate average (MFT)",
    "mean_average": "Mean of running averages (MAA)",
    "average_over_time": "Average over time (A_AUC)",
    "bwt": "Backward transfer (BWT)",
    "bwt_divisor_t": "Backward transfer, divisor T",
    "forgetting": "Forgetting (against the best)",
    "forgetting_diagonal": "Forgetting (against the diagonal)",
    "forward_transfer": "Forward transfer (FWT)",
    "zero_shot_average": "Zero-shot average",
}


WITH_BOUNDARIES = frozenset(  # figures that need the moment at which a task was learned
    {"immediate_average", "mean_average", "bwt", "bwt_divisor_t", "forgetting_diagonal", "forward_transfer"}
)
WITHOUT_BOUNDARIES = frozenset({"average_over_time"})  # figures of streams without boundaries only

# Said wherever figures of such a stream are shown.
NO_BOUNDARIES = (
    "The stream has no boundaries between its tasks: the immediate average, the mean of running averages, backward "
    "transfer and forward transfer need the moment at which a task was learned and are left out; forgetting is each "
    "task's best score at an earlier point minus its last one."
)
