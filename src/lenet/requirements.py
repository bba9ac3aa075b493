"""What an installed package needs, by its own account."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements(package: str) -> tuple[set[str], set[str]]:
    """The packages that it needs, and those that it needs for extras alone; in their canonical names.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    needed: set[str] = set()
    extra: set[str] = set()
    for line in importlib.metadata.requires(package) or []:
        requirement = Requirement(line)
        (extra if "extra" in str(requirement.marker) else needed).add(canonicalize_name(requirement.name))
    return needed, extra - needed
