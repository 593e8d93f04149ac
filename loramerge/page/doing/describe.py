"""Say what the headers of files say, of files that are not in the index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError
from loramerge.events import Notify
from loramerge.library.contents import described

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> list[dict[str, Any]]:
    """Return the facts of each of `paths`; of one that cannot be read, why, as a problem."""
    return [_facts(Path(path)) for path in request["paths"]]


def _facts(path: Path) -> dict[str, Any]:
    try:
        return described(path)
    except LoramergeError as error:
        return {"problems": [error.problem]}
    except OSError as error:
        return {"problems": [f"it cannot be read: {error.strerror or error}"]}
