"""From files to the device: seconds, and the memory of the host that it takes meanwhile."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import torch
from proof_record import NotRun, Record
from proof_scale import Scale, forget_peak, peak_gib
from proof_steps import random_llava

from components.models.backbone import load_backbone
from components.models.source import model_source

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def loading(record: Record, scale: Scale, folder: Path) -> None:
    """Write the random checkpoint as published ones are written, and load it as a worker does."""
    with random_llava(record, scale, folder) as llava:
        size = sum(parameter.numel() * parameter.element_size() for parameter in llava.model.parameters())
        config = llava.config()
        with record.measuring("write the checkpoint", budget_s=90) as facts:
            free = shutil.disk_usage(folder).free
            if free < 1.2 * size:
                raise NotRun(f"{folder} has {free / 2**30:.0f} GiB free for a checkpoint of {size / 2**30:.0f} GiB")
            started = time.perf_counter()
            llava.model.save_pretrained(llava.folder)
            facts["seconds"] = time.perf_counter() - started
            facts["gib"] = size / 2**30
        del llava.model, llava
    if not any(Path(config.name).glob("*.safetensors")):
        return
    with record.measuring("the digest of its files, once a machine", budget_s=90) as facts:
        started = time.perf_counter()
        model_source(config).fingerprint()
        facts["seconds"] = time.perf_counter() - started
    # The files were just written, so the system may still hold them in memory: this is the least that loading takes.
    with record.measuring("load it to the device", budget_s=90) as facts:
        before = _host_gib("VmRSS")
        _forget_host_peak()
        forget_peak(scale)
        started = time.perf_counter()
        load_backbone(config).to(torch.device(scale.device))
        if scale.on_gpu:
            torch.cuda.synchronize()
        facts["seconds"] = time.perf_counter() - started
        facts["gib"] = size / 2**30
        peak = _host_gib("VmHWM")
        # Pages of the files that were mapped count, too; the system takes them back when it needs them.
        facts["host_gib"] = None if peak is None or before is None else peak - before
        facts["peak_gib"] = peak_gib(scale)


def _host_gib(name: str) -> float | None:
    """A field of this process's memory, where the system tells it."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text()) if STATUS.is_file() else None
    return int(found[1]) / 2**20 if found else None


def _forget_host_peak() -> None:
    try:
        CLEAR.write_text("5")
    except OSError as error:
        raise NotRun(f"the peak of the host's memory cannot be set back ({error})") from error
