"""Who uses which value of a program, and whether one that is changed in place is seen by others that look at it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workers.engine.errors import UnsupportedModelError

VIEWS = frozenset({
    "alias", "as_strided", "chunk", "contiguous", "detach", "diagonal", "dropout", "expand", "expand_as", "flatten",
    "mT", "movedim", "narrow", "numpy_T", "permute", "reshape", "reshape_as", "select", "slice", "split",
    "split_with_sizes", "squeeze", "swapaxes", "t", "tensor_split", "to", "transpose", "unbind", "unflatten",
    "unsqueeze", "_unsafe_view", "view", "view_as",
})  # fmt: skip
"""Ops whose result may be a window into their first argument."""


class Uses:
    def __init__(self, graph: dict[str, Any]) -> None:
        self.last: dict[str, int] = {}
        """Value → place of the last node that takes it, or of the end for outputs."""
        self._roots: dict[str, str] = {}
        for place, node in enumerate(graph["nodes"]):
            self.last.update(dict.fromkeys(_names([entry["arg"] for entry in node["inputs"]]), place))
        self.last.update(dict.fromkeys(_names(graph["outputs"]), len(graph["nodes"])))

    def check_in_place(self, place: int, node: dict[str, Any]) -> None:
        """Raises UnsupportedModelError where a node changes what a later one sees through another value."""
        op = str(node["target"]).removeprefix("torch.ops.aten.").partition(".")[0]
        first = next(iter(_names([node["inputs"][0]["arg"]] if node["inputs"] else [])), None)
        if first is None:
            return
        root = self._roots.get(first, first)
        changes = op.endswith("_") and not op.endswith("__")
        made = list(_names(node["outputs"]))
        if changes:
            others = (name for name, of in self._roots.items() if of == root and name not in made)
            if any(self.last.get(name, -1) > place for name in (root, *others)):
                raise UnsupportedModelError(
                    f"The program changes a tensor in place ({op}) that it looks at through another one later, which a "
                    "graph cannot say. Write it without in-place operations, or upload the model as ONNX."
                )
        if changes or op in VIEWS:
            self._roots.update(dict.fromkeys(made, root))


def _names(value: Any) -> Iterator[str]:
    """Names of values, wherever they stand in an argument."""
    if isinstance(value, dict):
        for key in ("name", "as_name"):
            if isinstance(value.get(key), str):
                yield value[key]
        for inner in value.values():
            yield from _names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner)
