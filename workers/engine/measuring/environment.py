"""Where the figures were measured: without it a latency says nothing."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import onnxruntime
import torch

from modelpress.jobs import Runtime
from modelpress.report import Environment

FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Those of the instruction set that decide how fast a network runs."""
VNNI = {"avx_vnni", "avx512_vnni", "amx_int8"}


def environment(device: torch.device, threads: int, sandbox: tuple[str, ...]) -> Environment:
    cpu, flags = processor()
    return Environment(
        cpu=cpu,
        isa=flags,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=threads,
        python=platform.python_version(),
        torch=torch.__version__,
        onnxruntime=onnxruntime.__version__,
        sandbox=sandbox,
    )


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Model name and the flags that matter, in the order of `FLAGS`."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("Processor") or platform.processor() or platform.machine()
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return name, tuple(flag for flag in FLAGS if flag in present)


def own_runtime() -> Runtime:
    """What `auto` means here."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "cpu-arm"
    return "cpu-vnni" if VNNI & set(processor()[1]) else "cpu-avx2"
