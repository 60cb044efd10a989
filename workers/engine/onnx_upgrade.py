"""Carries ONNX nodes from the opset they were written in to a newer one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
from onnx import ModelProto, NodeProto, version_converter

from workers.engine.errors import UnsupportedModelError
from workers.engine.onnx_names import every_node


def upgraded(model: ModelProto, nodes: Sequence[NodeProto], opset: int) -> list[NodeProto]:
    """The nodes, which are those of the model, as they are written in the opset; their outputs keep their names.

    Raises UnsupportedModelError where an op works in another way there and nobody knows how to say it.
    """
    (old,) = (entry.version for entry in model.opset_import if not entry.domain)
    if not _changed(nodes, old, opset):
        return list(nodes)
    try:
        return list(version_converter.convert_version(model, opset).graph.node)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        ops = ", ".join(_changed(nodes, old, opset))
        raise UnsupportedModelError(
            f"the model uses opset {old}, and {ops} cannot be carried to opset {opset}, in which it would be written: "
            "export it with a newer opset"
        ) from error


def _changed(nodes: Iterable[NodeProto], old: int, new: int) -> list[str]:
    """ONNX's own ops that have another definition in the newer opset."""
    ops = {node.op_type for outer in nodes for node in every_node(outer) if not node.domain}
    return sorted(op for op in ops if _version(op, old) != _version(op, new))


def _version(op: str, opset: int) -> int:
    try:
        return int(onnx.defs.get_schema(op, opset).since_version)
    except onnx.defs.SchemaError:
        return 0
