"""Options of a source as a person gave them: names and types are checked before anything is opened.

Knows nothing about what an option means; each source has a frozen dataclass of its own that is made from here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.errors import InvalidInput, shown


def refused(name: str, value: object, rule: str) -> InvalidInput:
    """The error for an option: what was wrong, the value seen, the cure."""
    return InvalidInput(f"option {name!r} of the source should be {rule}, is {shown(value)}", f"correct {name!r}")


def refuse_unknown(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises InvalidInput for an option that there is not: a slip of the pen would else be ignored."""
    for name in options:
        if name not in known:
            raise InvalidInput(
                f"the source has no option {name!r}; it has {', '.join(known)}", f"correct {name!r} or leave it out"
            )


def text(options: Mapping[str, Any], name: str) -> str | None:
    """A text that is not blank; None where it is left out."""
    value = options.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise refused(name, value, "a text")
    return value


def needed_text(options: Mapping[str, Any], name: str) -> str:
    value = text(options, name)
    if value is None:
        raise refused(name, value, "given: the source cannot be without it")
    return value


def flag(options: Mapping[str, Any], name: str) -> bool:
    """True or false; false where it is left out."""
    value = options.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise refused(name, value, "true or false")
    return value


def whole_number(options: Mapping[str, Any], name: str, *, default: int, least: int, most: int) -> int:
    """A whole number in least..most; `default` where it is left out."""
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise refused(name, value, f"a whole number in {least:,}..{most:,}")
    return value
