"""Importing this loads Lightning, without what no run uses: that is half of the seconds of a start.

- Lightning needs torchmetrics, and that loads matplotlib, torchvision, transformers and more wherever they are
  installed, for functions that are not called here. While it loads, what it can do without seems not to be there; who
  needs it later, has it.
- Lightning and torch's optimizers load torch's compiler: to recognise modules that it has compiled, and to have it
  leave out functions that it should not compile. Where nothing is compiled, there is nothing to recognise and nothing
  to leave out, so a stand-in answers. Whoever compiles later gets the compiler itself, which then does not know what
  was to be left out so far.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

import torch  # noqa: F401 - as it is, before anything stands in for a part of it
from lightning_utilities.core import imports
from packaging.utils import canonicalize_name

from lenet.requirements import requirements

COMPILER = "torch._dynamo"


class _IfLoaded(type):
    def __instancecheck__(cls, instance: object) -> bool:
        compiler = sys.modules.get(f"{COMPILER}.eval_frame")
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class OptimizedModule(metaclass=_IfLoaded):
    """Stands for the compiler's class of that name: what it has compiled is an instance of this too."""


class CompilerOnDemand(ModuleType):
    """Stands for torch's compiler until something is asked of it that only the compiler can answer.

    Attributes:
        lightning_loads: `from torch._dynamo import …`, as Lightning has it, looks whether this is a package, and would
            load the compiler; so it is none, until Lightning is loaded.
    """

    OptimizedModule = OptimizedModule
    lightning_loads = True

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Ends what is being compiled: nothing."""

    @staticmethod
    def disable(function: Any = None, *_: Any, **__: Any) -> Any:
        """A function that is not compiled, or a decorator that makes one."""
        return CompilerOnDemand.disable if function is None else function

    def __getattr__(self, name: str) -> Any:
        if name == "__path__" and self.lightning_loads:
            raise AttributeError(name)
        # Debuggers and the like ask every module for its file, say; that is no reason to load this one.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


def _load_lightning() -> None:
    with _without_unused_packages():
        compiler = CompilerOnDemand(COMPILER)
        compiler.__spec__ = importlib.util.find_spec(COMPILER)
        sys.modules.setdefault(COMPILER, compiler)
        import lightning.pytorch  # noqa: F401

        compiler.lightning_loads = False


@contextmanager
def _without_unused_packages() -> Iterator[None]:
    """Does nothing, if packages are looked for in another way some day."""
    names = ("_version", "find_spec")
    before: dict[str, Any] = {name: getattr(imports, name, None) for name in names}
    if None in before.values():
        yield
        return

    _, unused = requirements("torchmetrics")

    def version(name: str) -> str:
        if canonicalize_name(name) in unused:
            raise PackageNotFoundError(name)
        found: str = before["_version"](name)
        return found

    def find_spec(name: str) -> Any:
        return None if canonicalize_name(name) in unused else before["find_spec"](name)

    vars(imports).update(_version=version, find_spec=find_spec)
    try:
        yield
    finally:
        vars(imports).update(before)
        imports.package_available.cache_clear()


_load_lightning()
