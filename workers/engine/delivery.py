"""The result in the formats that were asked for, each read back before it is given out."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelpress.jobs import Format
from modelpress.run import ResultFile
from workers.engine.errors import EngineError, UnsupportedModelError, UnusableResultError
from workers.engine.graph import Graph
from workers.engine.inspection import TOLERANCE, Checked, differences
from workers.engine.readers import ZIP, read_model
from workers.engine.readers.packed import unpacked
from workers.engine.reporter import Reporter
from workers.engine.runtime import arrays
from workers.engine.writers import write_model

MEASURED: Format = "onnx"
"""What all figures but sizes are of, whatever is given out."""


@dataclass(frozen=True)
class Delivery:
    measured: Path
    """The ONNX file."""
    files: tuple[ResultFile, ...]
    """In the order of the formats asked for."""


def check_formats(original: Graph, formats: Sequence[Format], run_dir: Path) -> None:
    """Try out what the steps start from, so that hours of them are not for a format that cannot hold the model.

    Raises UnsupportedModelError.
    """
    trial = run_dir / "trial"
    for format_ in formats:
        if format_ == MEASURED:
            continue
        try:
            write_model(original, format_, trial)
        except EngineError as refusal:
            raise UnsupportedModelError(
                f"this model cannot be written as {format_}: {refusal}; leave {format_} out of `formats`"
            ) from refusal
        finally:
            trial.unlink(missing_ok=True)


def deliver(
    graph: Graph, formats: Sequence[Format], run_dir: Path, checked: Checked | None, reporter: Reporter
) -> Delivery:
    """Write all of them. What the steps have made of the graph may be more than a format can hold: that is warned of,
    and ONNX, which holds everything, stands in where nothing else is left.
    """
    measured = run_dir / "out" / "model.onnx"
    write_model(graph, MEASURED, measured)
    given = {MEASURED: measured}
    for format_ in formats:
        if format_ == MEASURED:
            continue
        try:
            given[format_] = _write(graph, format_, measured, checked)
        except EngineError as refusal:
            reporter.warn(f"the result is not there as {format_}: {refusal}")
    wanted = [format_ for format_ in formats if format_ in given]
    if not wanted:
        reporter.warn("the result is given as onnx instead")
        wanted = [MEASURED]
    return Delivery(measured, tuple(ResultFile(format=name, path=f"out/{given[name].name}") for name in wanted))


def _write(graph: Graph, format_: Format, measured: Path, checked: Checked | None) -> Path:
    """Raises EngineError where the format cannot hold the graph, or does not give back what was written."""
    path = measured.with_suffix(f".{format_}")
    write_model(graph, format_, path)
    if format_ == "packed":
        _check_packed(path, measured)
    else:
        _check_answers(graph, format_, path, measured, checked)
    if format_ == "safetensors" and _is_zip(path):
        path = path.rename(path.with_suffix(".zip"))  # a folder with weights and configuration
    return path


def _check_packed(path: Path, measured: Path) -> None:
    again = unpacked(path)
    same = filecmp.cmp(again, measured, shallow=False)
    again.unlink()
    if not same:
        raise UnusableResultError("unpacked again, it is not the ONNX file that was packed; please report it")


def _check_answers(graph: Graph, format_: Format, path: Path, measured: Path, checked: Checked | None) -> None:
    _, again = read_model(path, measured if format_ == "safetensors" and not _is_zip(path) else None)
    if checked is None:
        return
    for output, error in differences(again, checked.inputs, arrays(graph(*checked.inputs))).items():
        if error > TOLERANCE:
            raise UnusableResultError(
                f"read back, its output {output!r} differs by {error:.1%} from the result's; please report it"
            )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP
