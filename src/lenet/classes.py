"""The classes that a configuration names: found, compared with their role and signature, and made.

A section names a class as `_target_`; its other keys are the arguments. Anything importable of the section's role may
be named, the user's own included.
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

IN_CHECKPOINTS = ("model", "loss", "optimizer", "scheduler")
"""The sections that a checkpoint has, too. All classes in them are checked: it may name a network, but no os.system."""

ROLES = {
    "model": ("torch.nn.Module", "a network"),
    "loss": ("torch.nn.Module", "a loss"),
    "optimizer": ("torch.optim.Optimizer", "an optimizer"),
    "scheduler": ("torch.optim.lr_scheduler.LRScheduler", "a learning-rate schedule"),
    "data": ("lightning.pytorch.LightningDataModule", "a LightningDataModule"),
    "augment": ("collections.abc.Callable", "callable with (images, labels)"),
    "average": ("lightning.pytorch.Callback", "a callback of Lightning's"),
    "callbacks": ("lightning.pytorch.Callback", "a callback of Lightning's"),
    "logger": ("lightning.pytorch.loggers.Logger", "a logger of Lightning's"),
}
"""The base class of what a section may name, and a noun for messages."""


def build(role: str, section: Mapping[str, Any], **offered: Any) -> Any:
    """Make the object that a section names, with its arguments and those of the offered ones that `completed` adds.

    Optimizers and schedules are made later: what is returned is a function. Raises a UserError if the section names no
    class of that role, an argument is wrong, or a package is missing.
    """
    arguments = completed(role, section, **offered)
    is_function = role == "augment" and inspect.isfunction(resolve_name(section["_target_"]))
    later = {"_partial_": True} if is_function or role in ("optimizer", "scheduler") else {}
    try:
        return instantiate({**arguments, **later}, _convert_="all")
    except (InstantiationException, TypeError) as error:  # the second from Hydra itself, as for `_partial_: 3`
        reason = error.__cause__ or error
        if isinstance(reason, UserError):
            raise reason from None
        raise UserError(f"{role}: {section['_target_']}: {flat(reason)}") from error


def completed(role: str, section: Mapping[str, Any], **offered: Any) -> dict[str, Any]:
    """The section, checked, with those of the offered arguments that its class takes and the section does not have."""
    check_named(role, section, role)
    accepted = arguments_of(resolve_name(section["_target_"])) or ()
    return {**{name: value for name, value in offered.items() if name in accepted}, **section}


def check_named(key: str, section: Mapping[str, Any], role: str) -> None:
    """Raise a UserError unless the section names something of its role, and each argument is one of its signature."""
    target = section["_target_"]
    accepted = arguments_of(located(key, target, role))
    for name, value in section.items():
        if not name.startswith("_") and accepted is not None and name not in accepted:
            raise UserError(f"{key}.{name}={value}: {target} has no such argument{did_you_mean(name, accepted)}")
        if role in IN_CHECKPOINTS:
            _check_inside(f"{key}.{name}", value, role)


def _check_inside(key: str, value: Any, role: str) -> None:
    """Check what a value names, however deep inside: an activation, a layer, what networks are made of."""
    if isinstance(value, dict) and "_target_" in value:
        check_named(key, value, role)
        return
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_inside(key, part, role)


def located(key: str, target: str, role: str) -> Any:
    """The class that a key names, or function that returns an object of it; a UserError if it has another role."""
    base_name, noun = ROLES[role]
    base = resolve_name(base_name)
    try:
        named = resolve_name(target)
    except Exception as error:  # importing a module of the user's may raise anything
        raise UserError(f"{key}._target_={target}: cannot be imported ({flat(error.__cause__ or error)})") from error
    made = named
    if role == "augment" and inspect.isfunction(named):
        return named
    if inspect.isfunction(named):
        made = typing.get_type_hints(named).get("return")
    if not (inspect.isclass(made) and issubclass(made, base)):
        remedy = "a function, or a class whose objects are called" if role == "augment" else "a class"
        derives = "" if role == "augment" else f" that derives from {base_name}"
        raise UserError(f"{key}._target_={target}: is not {noun}; name {remedy}{derives}")
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
