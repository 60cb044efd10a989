"""The result in the formats that were asked for, each read back before it is given out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelpress.jobs import Extra, Format
from modelpress.run import Compress, ResultFile
from workers.engine.errors import EngineError, InvalidModelError, UnsupportedModelError, UnusableResultError
from workers.engine.graph import Graph
from workers.engine.inspection import Checked, differences
from workers.engine.pipeline import describe
from workers.engine.readers import ZIP, read_model
from workers.engine.reporter import Reporter
from workers.engine.runtime import arrays, open_session
from workers.engine.writers import write_model, writer_of
from workers.engine.writers.huggingface import needs_own_loader

TOLERANCE = 0.05
"""Relative error up to which a stored file may answer unlike the graph in training: kernels round and saturate."""
MEASURED: Format = "onnx"
"""What all figures but sizes are of, whatever is given out."""
HOLD_ALL: frozenset[Format] = frozenset({MEASURED, "packed"})
"""What can be read can be written in these."""
ARCHIVE = ".zip"
"""Safetensors of a Hugging Face model come in one, with their configuration."""


@dataclass(frozen=True)
class Delivery:
    measured: Path
    """The ONNX file."""
    files: tuple[ResultFile, ...]
    """In the order of the formats asked for."""
    extras: tuple[ResultFile, ...]
    """What steps give beside the result, in ONNX."""


def check_formats(original: Graph, formats: Sequence[Format], run_dir: Path) -> None:
    """Try out what the steps start from, so that hours of them are not for a format that cannot hold the model.

    Raises UnsupportedModelError.
    """
    trial = run_dir / "trial"
    for format_ in formats:
        if format_ in HOLD_ALL:
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
    graph: Graph,
    extras: Mapping[Extra, Graph],
    spec: Compress,
    run_dir: Path,
    checked: Checked | None,
    reporter: Reporter,
) -> Delivery:
    """Write all of them. What the steps have made of the graph may be more than a format can hold: that is warned of,
    and ONNX, which holds everything, stands in where nothing else is left.

    Raises UnusableResultError where ONNX Runtime does not run the ONNX file.
    """
    measured = run_dir / "out" / "model.onnx"
    write_model(graph, MEASURED, measured)
    if checked is not None:
        _check_measured(graph, measured, checked, spec.limits.threads, reporter)
    given = {MEASURED: measured}
    for format_ in spec.request.formats:
        if format_ == MEASURED:
            continue
        try:
            _check_steps(spec, format_)
            given[format_] = _write(graph, format_, measured, checked)
            if given[format_].suffix == ARCHIVE and needs_own_loader(given[format_]):
                reporter.warn(
                    "no configuration of transformers says which layers are left of the result, and of which sizes: "
                    "load the folder with modelpress.huggingface.load; from_pretrained finds no weights in it"
                )
        except OSError:
            raise  # a full disk is no matter of the format
        except Exception as error:  # noqa: BLE001 (what the steps have made is not thrown away for one of several files)
            reporter.warn(f"the result is not there as {format_}: {describe(error, spec).message}")
    wanted = [format_ for format_ in spec.request.formats if format_ in given]
    if not wanted:
        reporter.warn("the result is given as onnx instead")
        wanted = [MEASURED]
    files = tuple(ResultFile(format=name, path=f"out/{given[name].name}") for name in wanted)
    return Delivery(measured, files, tuple(_write_extra(name, extra, run_dir) for name, extra in extras.items()))


def _check_steps(spec: Compress, format_: Format) -> None:
    """Raises UnsupportedModelError where the format would be silent about what a step has made."""
    for step in spec.request.recipe:
        if format_ in step.cannot_hold:
            raise UnsupportedModelError(f"it cannot hold {step.cannot_hold[format_]}, which {step.step} makes")


def _write_extra(name: Extra, graph: Graph, run_dir: Path) -> ResultFile:
    path = f"out/{name}.onnx"
    graph.module.cpu()
    write_model(graph, MEASURED, run_dir / path)
    return ResultFile(format=name, path=path)


def _check_measured(graph: Graph, measured: Path, checked: Checked, threads: int, reporter: Reporter) -> None:
    try:
        answers = open_session(measured, threads).run(arrays(checked.inputs))
    except InvalidModelError as refusal:
        raise UnusableResultError(f"the compressed file was written, but {refusal}") from refusal
    for output, error in differences(graph, checked.inputs, answers).items():
        if error > TOLERANCE:
            reporter.warn(
                f"the output {output!r} of the stored file differs by {error:.1%} from what the steps worked with; "
                "all figures are those of the stored file"
            )


def _write(graph: Graph, format_: Format, measured: Path, checked: Checked | None) -> Path:
    """Raises EngineError where the format cannot hold the graph, or does not give back what was written."""
    path, writer = measured.with_suffix(f".{format_}"), writer_of(format_)
    writer.write(graph, path)
    if writer.check is None or not writer.check(graph, path, measured):
        _check_answers(path, graph, checked)
    return path.rename(path.with_suffix(ARCHIVE)) if format_ == "safetensors" and _is_zip(path) else path


def _check_answers(path: Path, graph: Graph, checked: Checked | None) -> None:
    _, again = read_model(path)
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
