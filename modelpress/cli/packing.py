"""`modelpress pack` and `unpack`: files on this machine, without any service."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from modelpress.cli.connect import ERROR
from modelpress.cli.output import err, out, size

SUFFIX = ".packed"

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="file, or folder; beside the given one by default")]


def pack(file: File, output: Output = None) -> None:
    """Store an ONNX file smaller, without loss: `modelpress unpack` gives back the very same bytes."""
    target = place(output, file.with_name(file.name + SUFFIX))
    with told():
        from modelpress.packed import pack as pack_file  # noqa: PLC0415 (it needs packages that a client does not)

        pack_file(file, target)
    before, after = file.stat().st_size, target.stat().st_size
    out.print(f"{target}  {size(before)} → {size(after)}, {before / after:.2f}× smaller", soft_wrap=True)


def unpack(
    file: File,
    output: Output = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="refuse what unpacks to more; 2 GiB by default")] = None,
) -> None:
    """Give back the file that was packed."""
    target = place(output, original_name(file))
    with told():
        from modelpress.packed import MAX_BYTES  # noqa: PLC0415 (as above)
        from modelpress.packed import unpack as unpack_file  # noqa: PLC0415 (as above)

        unpack_file(file, target, max_bytes=max_bytes or MAX_BYTES)
    out.print(f"{target}  {size(target.stat().st_size)}", soft_wrap=True)


def original_name(file: Path) -> Path:
    """model.onnx.packed -> model.onnx, and so does model.packed."""
    inner = file.with_suffix("") if file.suffix == SUFFIX else file
    return inner if inner.suffix and inner != file else inner.with_suffix(".onnx")


def place(output: Path | None, beside: Path) -> Path:
    """Where to write. A file that is there is only written over where the user has named it."""
    if output is None:
        if beside.exists():
            raise typer.BadParameter(f"{beside} is there already; name the file to write", param_hint="--output")
        return beside
    if output.is_dir():
        return output / beside.name
    if not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    return output


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong is said in a sentence."""
    try:
        yield
    except (ImportError, ValueError, OSError) as error:
        err.print(f"error: {error}", markup=False, style="red", soft_wrap=True)
        raise typer.Exit(ERROR) from None
