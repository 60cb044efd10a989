"""Packed files beside zstd -19 and xz: how small, how fast, in how much memory.

    python -m benchmarks.packed CACHE [--data FOLDER] [--mutations N]

FOLDER holds resnet.onnx and lenet5.onnx, the example's by default; everything else is made into CACHE: the ResNet with
90 % zeros and 16 values a layer, in int8 and in float16, MiniLM (where its package is installed), random floats.
Packing and unpacking run in fresh processes of one thread, some times over: the best rate counts, in ONNX bytes for a
second of the processor, and the peak of memory above what the interpreter takes with everything imported. Then N
packed files are damaged, half of them with checksums that are right again: each has to end in a PackedError or in the
right bytes, and in little memory.

Exit code 1 where a bar is missed: 25 times for the sparse one, 50 MB/s each way, memory of three times the file
(of files from 8 MiB on: below, tables and buffers weigh more than the file), never larger than the file by over 0.1 %.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import zstandard
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks.zoo import zoo
from modelpress.packed import PackedError, pack, unpack
from tests.packed.mutating import mutated

EXAMPLE = Path(__file__).parent.parent / "examples" / "fashion_mnist"
SPARSITY, VALUES = 0.9, 16
RATE, SMALLER, MEMORY, MEMORY_FROM, GROWTH = 50e6, 25, 3, 8 << 20, 1.001
SLOW_ONES = 16 << 20
"""zstd -19 and xz take minutes above; they are run on the first bytes only."""
DECLARED = 64 << 20
MOST_MEMORY = 64 << 20
"""Address space that a damaged file may take, above what the process has before."""

CHILD = """
import json, sys, time
from pathlib import Path
from modelpress.packed import pack, unpack
source, target = map(Path, sys.argv[2:])
work = {"pack": pack, "unpack": unpack}[sys.argv[1]]
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
before = peak()
seconds = []
for _ in range(5):
    started = time.process_time()
    work(source, target)
    seconds.append(time.process_time() - started)
print(json.dumps([min(seconds), peak() - before]))
"""


def models(cache: Path, data: Path) -> dict[str, Path]:
    cache.mkdir(parents=True, exist_ok=True)
    resnet = data / "resnet.onnx"
    found = {
        f"ResNet, {SPARSITY:.0%} zeros, {VALUES} values": _sparse(resnet, cache / "resnet-sparse.onnx"),
        "ResNet": resnet,
        "ResNet, int8 (static)": _stepped(resnet, "static_quantization", cache / "resnet-int8.onnx"),
        "ResNet, float16": _stepped(resnet, "half_precision", cache / "resnet-half.onnx"),
        "LeNet-5": data / "lenet5.onnx",
        "random floats": _random(cache / "random.onnx"),
    }
    minilm = zoo(cache).get("minilm")
    if minilm is not None:
        found["MiniLM"] = minilm.path()
        found["MiniLM, float16"] = _stepped(found["MiniLM"], "half_precision", cache / "minilm-half.onnx")
    return found


def _sparse(source: Path, target: Path) -> Path:
    """Every layer's largest weights, moved to the nearest of 16 means."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim >= 2 and weight.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(_clustered(weight), tensor.name))
    onnx.save(model, target)
    return target


def _clustered(weight: np.ndarray) -> np.ndarray:
    kept = np.abs(weight) > np.quantile(np.abs(weight), SPARSITY)
    values = weight[kept]
    means = np.quantile(values, np.linspace(0, 1, VALUES))
    for _ in range(20):
        nearest = np.abs(values[:, None] - means).argmin(axis=1)
        means = np.array([values[nearest == i].mean() if (nearest == i).any() else means[i] for i in range(VALUES)])
    out = np.zeros_like(weight)
    out[kept] = means[nearest]
    return out


def _stepped(source: Path, step: str, target: Path) -> Path:
    from benchmarks.applying import apply_steps  # noqa: PLC0415 (torch, which a cached file does not need)
    from workers.engine.readers import read_model  # noqa: PLC0415
    from workers.engine.writers import write_model  # noqa: PLC0415

    if not target.exists():
        graph, _ = apply_steps(read_model(source)[1], [{"step": step}])
        write_model(graph, "onnx", target)
    return target


def _random(target: Path) -> Path:
    values = np.random.default_rng(0).normal(0, 0.02, (2048, 4096)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "random",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2048])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4096])],
        [numpy_helper.from_array(values, "w")],
    )
    onnx.save(onnx.helper.make_model(graph), target)
    return target


def measured(work: str, source: Path, target: Path) -> tuple[float, int]:
    """Seconds and bytes of memory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, work, str(source), str(target)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    seconds, memory = json.loads(answer)
    return seconds, memory


def compare(found: dict[str, Path], console: Console) -> bool:
    table = Table("model", "bytes", "packed", "zstd -19", "xz", "pack", "unpack", "memory to pack", "to unpack", "")
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        packed, again = Path(folder) / "packed", Path(folder) / "again"
        for name, source in found.items():
            size = source.stat().st_size
            packing, memory = measured("pack", source, packed)
            unpacking, memory_back = measured("unpack", packed, again)
            smaller = size / packed.stat().st_size
            missed = {
                "other bytes": again.read_bytes() != source.read_bytes(),
                "ratio": smaller < (SMALLER if "zeros" in name else 1 / GROWTH),
                "rate": size / max(packing, unpacking) < RATE,
                "memory": size >= MEMORY_FROM and max(memory, memory_back) > MEMORY * size,
            }
            fine &= not any(missed.values())
            table.add_row(
                name,
                f"{size:,}",
                f"{smaller:.2f}×",
                *others(source),
                f"{size / packing / 1e6:.0f} MB/s",
                f"{size / unpacking / 1e6:.0f} MB/s",
                f"{memory / 2**20:.1f} MiB",
                f"{memory_back / 2**20:.1f} MiB",
                ", ".join(what for what, is_missed in missed.items() if is_missed),
            )
    console.print(table)
    return fine


def others(source: Path) -> tuple[str, str]:
    data = source.read_bytes()[:SLOW_ONES]
    mark = "×" if len(data) < SLOW_ONES else "× (start)"
    squeezed = len(zstandard.ZstdCompressor(level=19).compress(data)), len(lzma.compress(data, preset=9))
    return f"{len(data) / squeezed[0]:.2f}{mark}", f"{len(data) / squeezed[1]:.2f}{mark}"


def attack(sources: list[Path], count: int, console: Console) -> bool:
    """Damaged files in this very process, whose memory is limited first: a crash is a crash of the benchmark."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        packed, target = Path(folder) / "packed", Path(folder) / "target"
        contents = []
        for source in sources:
            pack(source, packed)
            contents.append((packed.read_bytes(), source.read_bytes()))
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for seed in range(count):
            dice = random.Random(seed)
            whole, original = dice.choice(contents)
            packed.write_bytes(mutated(whole, dice))
            started = time.perf_counter()
            try:
                unpack(packed, target, max_bytes=DECLARED)
                outcomes["the right bytes" if target.read_bytes() == original else "WRONG BYTES"] += 1
            except PackedError:
                outcomes["a PackedError"] += 1
            slowest = max(slowest, time.perf_counter() - started)
    console.print(f"{count} damaged files: {dict(outcomes)}; the slowest took {slowest * 1e3:.0f} ms", soft_wrap=True)
    return "WRONG BYTES" not in outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--data", type=Path, default=EXAMPLE)
    parser.add_argument("--mutations", type=int, default=5000)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    found = models(options.cache, options.data)
    fine = compare(found, console)
    small = [path for path in found.values() if path.stat().st_size < MEMORY_FROM]
    return 0 if attack(small, options.mutations, console) and fine else 1


if __name__ == "__main__":
    sys.exit(main())
