"""Untrusted YAML → values, with one error for every fault."""

from __future__ import annotations

from typing import Any

__all__ = ["require_shallow", "yaml_values"]

_MOST_OPEN = 1000  # brackets; the scanner looks at all open ones at each next


def require_shallow(text: str) -> None:
    """Refuse a text in which so many brackets are open at once that reading it would not end.

    Raises:
        ValueError: saying so.
    """
    if text.count("[") + text.count("{") <= _MOST_OPEN:
        return
    opened = 0
    for one in text:
        if one in "[{":
            opened += 1
            if opened > _MOST_OPEN:
                raise ValueError("nested too deeply")
        elif one in "]}":
            opened -= 1


def yaml_values(text: str) -> Any:
    """Return the values in a YAML 1.2 text.

    Raises:
        ValueError: if this is not YAML, or is nested too deeply.
    """
    require_shallow(text)
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (YAMLError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
