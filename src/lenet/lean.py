"""Importing this loads Lightning, without what no run uses: that is half a second of a start.

Lightning needs torchmetrics, and that loads matplotlib and torchvision wherever they are installed, for functions that
are not called here. While it loads, they seem not to be; who needs them later, has them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import Any

from lightning_utilities.core import imports

UNUSED = {"matplotlib", "torchvision"}


def _load_lightning() -> None:
    """Does nothing, if packages are looked for in another way some day."""
    names = ("_version", "find_spec")
    before: dict[str, Any] = {name: getattr(imports, name, None) for name in names}
    if None in before.values():
        return

    def version(name: str) -> str:
        if name in UNUSED:
            raise PackageNotFoundError(name)
        found: str = before["_version"](name)
        return found

    def find_spec(name: str) -> Any:
        return None if name in UNUSED else before["find_spec"](name)

    vars(imports).update(_version=version, find_spec=find_spec)
    try:
        import lightning.pytorch  # noqa: F401
    finally:
        vars(imports).update(before)
        imports.package_available.cache_clear()


_load_lightning()
