"""Which of a file's weights goes where: by name, with the prefixes that wrappers put before it left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Size, Tensor

from workers.engine.errors import InvalidModelError

WRAPPERS = ("module.", "model.", "_orig_mod.", "net.", "network.")
"""DataParallel, Lightning, torch.compile and custom wrappers put these before every name."""
UNUSED = "num_batches_tracked"
"""Batch norms count batches in training; no output depends on it."""
MOST_LISTED = 20


def fit(
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, Size],
    *,
    where: str,
    tied: Iterable[frozenset[str]] = (),
    reason: str = "",
) -> dict[str, Tensor]:
    """The weights by the names that are wanted, each of the shape that is wanted.

    `tied`: names of one tensor, of which any will do. Raises InvalidModelError that lists what is missing, left over or
    of another shape; `where` names the architecture, and `reason` what is special about it.
    """
    names = matched(weights, wanted)
    for group in tied:
        given = next((names[name] for name in sorted(group) if name in names), None)
        if given is not None:
            names.update({name: given for name in group if name not in names})
    missing = [name for name in wanted if name not in names and not name.endswith(UNUSED)]
    unexpected = sorted(set(weights) - set(names.values()))
    unexpected = [name for name in unexpected if not name.endswith(UNUSED)]
    unlike = [
        f"{name} {tuple(weights[names[name]].shape)} for {tuple(shape)}"
        for name, shape in wanted.items()
        if name in names and weights[names[name]].shape != shape
    ]
    if missing or unexpected or unlike:
        parts = {"missing": missing, "left over": unexpected, "of another shape": unlike}
        lists = "; ".join(f"{what}: {listed(entries)}" for what, entries in parts.items() if entries)
        raise InvalidModelError(f"the weights do not fit {where}{reason}; {lists}")
    return {name: weights[source] for name, source in names.items()}


def matched(weights: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, str]:
    """Wanted name → name in the file: the same one for as many as possible, then the same without wrappers."""
    exact = {name: name for name in wanted if name in weights}
    if len(exact) == len(weights):
        return exact
    bare: dict[str, list[str]] = {}
    for name in weights:
        bare.setdefault(_bare(name), []).append(name)
    loose = {name: found[0] for name in wanted if len(found := bare.get(_bare(name), [])) == 1}
    return loose if len(loose) > len(exact) else exact


def _bare(name: str) -> str:
    name = name.replace("_orig_mod.", "")
    while wrapper := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None):
        name = name.removeprefix(wrapper)
    return name


def listed(entries: list[str]) -> str:
    more = f" and {len(entries) - MOST_LISTED} more" if len(entries) > MOST_LISTED else ""
    return ", ".join(entries[:MOST_LISTED]) + more
