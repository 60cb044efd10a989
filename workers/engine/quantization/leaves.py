"""Leaves made from leaves. torch shares a parametrized class between copies, so parametrizations are never removed."""

from __future__ import annotations

from typing import Any

from torch import nn

from workers.engine.constraints import constrain, constraints_of, raw_parameter


def become(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """The same leaf with another forward: parameters, constraints and settings are taken over."""
    names = list(getattr(module, "parametrizations", {}))
    new = _bare(module, cls)
    for name in names:
        new.register_parameter(name, raw_parameter(module, name))
        for constraint in constraints_of(module, name):
            constrain(new, name, constraint)
    return new


def without_constraints(module: nn.Module) -> nn.Module:
    """A leaf whose parameters are plain: the values that the constraints left. They take no gradient."""
    names = list(getattr(module, "parametrizations", {}))
    new = _bare(module, type(module).__mro__[1] if names else type(module))
    for name in names:
        new.register_parameter(name, nn.Parameter(getattr(module, name).detach().clone(), requires_grad=False))
    return new


def _bare(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """The module as an instance of the class, without what is parametrized in it."""
    new: Any = cls.__new__(cls)
    new.__dict__ = {key: dict(value) if isinstance(value, dict) else value for key, value in module.__dict__.items()}
    new._modules.pop("parametrizations", None)  # noqa: SLF001 (the copy of torch's own record)
    return new
