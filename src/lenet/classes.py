"""The classes that a configuration names: found, compared with their role and signature, and made.

A section names a class as `_target_`; its other keys are the arguments. Anything importable of the section's role may
be named, the user's own included. A checkpoint's sections go through the same check, so that a file from elsewhere can
name networks and optimizers, but no other function.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lenet.errors import UserError, did_you_mean, flat

SINGLE = ("model", "loss", "optimizer", "scheduler", "data")
SEVERAL = ("callbacks", "logger")

ROLES = {
    "model": ("torch.nn.Module", "a network"),
    "loss": ("torch.nn.Module", "a loss"),
    "optimizer": ("torch.optim.Optimizer", "an optimizer"),
    "scheduler": ("torch.optim.lr_scheduler.LRScheduler", "a learning-rate schedule"),
    "data": ("lightning.pytorch.LightningDataModule", "a LightningDataModule"),
    "callbacks": ("lightning.pytorch.Callback", "a callback of Lightning's"),
    "logger": ("lightning.pytorch.loggers.Logger", "a logger of Lightning's"),
}
"""The base class of what a section may name, and how it is called."""


def build(role: str, section: Mapping[str, Any], **more: Any) -> Any:
    """Make the object that a section names.

    Args:
        role: one of ROLES. Optimizers and schedules are made later: what is returned is a function.
        section: the class as `_target_`, and its arguments.
        more: arguments that are passed if the class takes them and the section does not have them.

    Raises:
        UserError: the section names no such class, an argument is wrong, or a package is missing.
    """
    check_named(role, section, role)
    accepted = arguments_of(resolve_name(section["_target_"]))
    added = {key: value for key, value in more.items() if key not in section and key in (accepted or ())}
    later = {"_partial_": True} if role in ("optimizer", "scheduler") else {}
    try:
        return instantiate({**section, **later}, _convert_="all", **added)
    except InstantiationException as error:
        reason = error.__cause__ or error
        if isinstance(reason, UserError):
            raise reason from None
        raise UserError(f"{role}: {section['_target_']}: {flat(reason)}") from error


def check_named(key: str, section: Mapping[str, Any], role: str) -> None:
    """Check that a section names something of its role, and that each argument is one of its signature.

    Raises:
        UserError: names the key, its value and what would be right.
    """
    target = section["_target_"]
    named = _located(key, target, ROLES[role])
    accepted = arguments_of(named)
    for name, value in section.items():
        if not name.startswith("_") and accepted is not None and name not in accepted:
            raise UserError(f"{key}.{name}={value}: {target} has no such argument{did_you_mean(name, accepted)}")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for part in (value, *inner):
            if isinstance(part, dict) and "_target_" in part:  # an activation, a layer: what networks are made of
                check_named(f"{key}.{name}", part, role)


def accepted_arguments(role: str, target: str) -> frozenset[str] | None:
    """The arguments of the class that a section names; None if it takes any.

    Raises:
        UserError: it cannot be imported, or is of another role.
    """
    return arguments_of(_located(role, target, ROLES[role]))


def _located(key: str, target: str, role: tuple[str, str]) -> Any:
    """The class, or the function that returns an object of it."""
    base = resolve_name(role[0])
    try:
        named = resolve_name(target)
    except Exception as error:  # importing a module of the user's may raise anything
        raise UserError(f"{key}._target_={target}: cannot be imported ({flat(error.__cause__ or error)})") from error
    made = named
    if inspect.isfunction(named):
        made = typing.get_type_hints(named).get("return")
    if not (inspect.isclass(made) and issubclass(made, base)):
        raise UserError(f"{key}._target_={target}: is not {role[1]}; name a class that derives from {role[0]}")
    return named


@functools.cache
def arguments_of(named: Callable[..., Any]) -> frozenset[str] | None:
    """The names of the arguments that a class or function takes; None if it takes any."""
    names: set[str] = set()
    for each in inspect.getmro(named) if inspect.isclass(named) else [named]:
        try:
            parameters = inspect.signature(each).parameters.values()
        except (TypeError, ValueError):
            return None
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return frozenset(names)  # what takes **arguments hands them to the class it derives from
    return None
