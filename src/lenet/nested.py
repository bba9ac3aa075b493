"""Nested dicts and lists, part by part."""

from __future__ import annotations

from typing import Any


def parts(value: Any, key: str) -> list[tuple[str, Any]]:
    """All that is in nested dicts and lists, with its full key: numbers count a list's parts from 0 on."""
    match value:
        case dict():
            return [part for name, inner in value.items() for part in parts(inner, f"{key}.{name}")]
        case list() | tuple():
            return [part for number, inner in enumerate(value) for part in parts(inner, f"{key}.{number}")]
        case _:
            return [(key, value)]
