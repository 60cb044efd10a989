"""Which names a pickle would import, found without loading it."""

from __future__ import annotations

import io
import pickletools
import zipfile

from workers.engine.zip_errors import UNREADABLE

TENSOR_NAMES = {
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.Size",
    "torch.device",
    *(
        f"torch.{kind}Storage"
        for kind in ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
    ),
    "torch.storage.UntypedStorage",
    "torch.Tensor",
    "torch._tensor._rebuild_from_type_v2",
    "builtins.set",
    "__builtin__.set",
}
"""What a pickle of nothing but tensors in tuples, lists and dicts imports.

The last four come with tensors whose dimensions were marked as dynamic, which torch notes in attributes.
"""


def foreign_names(data: bytes) -> set[str]:
    """Names that are imported beyond those of plain tensors, in a pickle or in one that torch.save wrote as a zip.

    What cannot be followed counts as foreign, under the name of the opcode.
    """
    if not data:
        return set()
    if data[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as inner:
                pickles = [
                    inner.read(member)
                    for member in inner.infolist()
                    if member.filename.endswith(".pkl") and member.file_size <= len(data)
                ]
        except UNREADABLE:
            return {"an unreadable archive"}
        if not pickles:
            return {"an archive without data.pkl"}
    else:
        pickles = [data]
    return set().union(*(_imports(pickle) for pickle in pickles)) - TENSOR_NAMES


def _imports(pickle: bytes) -> set[str]:
    found: set[str] = set()
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "GLOBAL":
                found.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.add(".".join(strings[-2:]) if len(strings) > 1 else "STACK_GLOBAL")
            elif opcode.name in {"INST", "EXT1", "EXT2", "EXT4"}:
                found.add(opcode.name)
            elif isinstance(argument, str):
                strings.append(argument)
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else ""
            elif opcode.name in {"GET", "BINGET", "LONG_BINGET"} and argument in memo:
                strings.append(memo[argument])
            if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"} and isinstance(argument, int):
                memo[argument] = strings[-1] if strings else ""
    except (ValueError, EOFError, IndexError, UnicodeDecodeError):
        found.add("a damaged pickle")
    return found
