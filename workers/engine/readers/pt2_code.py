"""The places where PyTorch would run text out of a `.pt2` program: guards, shape expressions, tree specs.

Here they are only looked at, and a program that has anything else there than PyTorch writes is refused.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, NoReturn

from workers.engine.errors import InvalidModelError

SYMBOL = re.compile(r"[a-z]+\d+")
EXPRESSION_NAMES = frozenset({
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "FloorDiv", "ModularIndexing", "Where",
    "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "PowByNatural", "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "RoundToInt", "ToFloat", "Identity", "Max", "Min",
    "floor", "ceiling", "int_oo",
})  # fmt: skip
GUARD_NAMES = frozenset({
    "L", "math", "FloorDiv", "Mod", "PythonMod", "Max", "Min", "max", "min", "torch", "True", "False", "None",
})  # fmt: skip
GUARD_ATTRIBUTES = frozenset(
    {"size", "stride", "shape", "dim", "ndim", "storage_offset", "dtype", "floor", "ceil", "sym_float"}
)
HARMLESS = (
    ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Subscript, ast.Tuple, ast.Call, ast.keyword,
    ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context,
)  # fmt: skip
TREE_TYPES = re.compile(r"builtins\.\w+|collections\.\w+|transformers\.[\w.]+|torch\.[\w.]+")


def refuse_code(document: dict[str, Any]) -> None:
    """Raises InvalidModelError where loading the program with PyTorch would run more than arithmetic on sizes."""
    for guard in document.get("guards_code", []):
        _check_expression(guard, "guard", GUARD_NAMES, GUARD_ATTRIBUTES)
    for symbol in document.get("range_constraints", {}):
        _check_expression(symbol, "range constraint", EXPRESSION_NAMES)
    for text in _expressions(document["graph_module"]["graph"]):
        _check_expression(text, "shape", EXPRESSION_NAMES)
    for entry in document["graph_module"]["module_call_graph"]:
        signature = entry.get("signature") or {}
        for spec in (signature.get("in_spec"), signature.get("out_spec")):
            if spec:
                _check_tree(json.loads(spec))


def _expressions(graph: dict[str, Any]) -> set[str]:
    sizes = [
        size
        for meta in graph["tensor_values"].values()
        for size in [*meta["sizes"], *meta["strides"], meta["storage_offset"]]
    ]
    for kind in ("sym_int_values", "sym_bool_values", "sym_float_values"):
        sizes += graph.get(kind, {}).values()
    return {size["as_expr"]["expr_str"] for size in sizes if "as_expr" in size}


def _check_expression(text: Any, what: str, names: frozenset[str], attributes: frozenset[str] = frozenset()) -> None:
    """Arithmetic on symbols and sizes passes; a call of anything else, an attribute or an import does not."""
    if not isinstance(text, str) or len(text) > 10_000:
        _refuse(what, str(text))
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _refuse(what, text)
    for node in ast.walk(tree):
        if isinstance(node, HARMLESS):
            continue
        if isinstance(node, ast.Name) and (node.id in names or SYMBOL.fullmatch(node.id)):
            continue
        if isinstance(node, ast.Attribute) and node.attr in attributes:
            continue
        if isinstance(node, ast.Constant) and (not isinstance(node.value, str) or node.value.isidentifier()):
            continue
        _refuse(what, text)


def _refuse(what: str, text: str) -> NoReturn:
    raise InvalidModelError(
        f"A {what} of the program is code, not arithmetic: {text[:80]!r}. Loading the file with PyTorch would run it. "
        "If that is not meant, do not load this file anywhere."
    )


def _check_tree(spec: Any) -> None:
    """Tree specs name container types and their keys; an enum among the keys would be imported by PyTorch."""
    if isinstance(spec, list):
        for entry in spec:
            _check_tree(entry)
    if not isinstance(spec, dict):
        return
    kind, context = spec.get("type"), spec.get("context")
    enum = "__enum__" in str(context)
    if enum or (kind is not None and not TREE_TYPES.fullmatch(str(kind))):
        raise InvalidModelError(
            f"The program's tree spec names {str(context if enum else kind)[:80]!r}, which PyTorch would import. "
            "Export the model with inputs and outputs in plain tuples, lists and dicts."
        )
    for child in spec.get("children_spec", []):
        _check_tree(child)
