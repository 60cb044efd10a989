"""Users' names of layers, from the names that exporters give weights and nodes."""

from __future__ import annotations

import re

WEIGHT = re.compile(r"(.+)\.weight(_ih)?(_quantized|_half|_packed|_values|_codebook)?", re.DOTALL)
"""torch's names for weights, ours for recurrent ones, and those of their stored forms."""
UNFOLDED = re.compile(r"_(values|unscaled|turned)$")
"""What the engine adds to the name of a weight for nodes that unfold it."""


def unfolded_weight(value: str) -> str:
    """The name of the weight that a node of ours unfolds, from the name of what the node gives."""
    return UNFOLDED.sub("", value)


def layer_of_weight(weight: str) -> str | None:
    """The layer whose weight has this name; None where the name does not say."""
    found = WEIGHT.fullmatch(weight)
    return found[1] if found else None


def scope_of(node: str, op_type: str) -> str:
    """`/stem/stem.0/Conv` is how torch's exporter writes the layer `stem.0`."""
    parts: list[str] = []
    for part in node.strip("/").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    if len(parts) > 1 and parts[-1] == op_type:
        parts.pop()
    return ".".join(parts)
