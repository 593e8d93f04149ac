"""A report as one HTML page that needs no other file, runs no script and asks no server.

All texts are escaped. The content security policy of the page allows its own style and embedded
images, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loramerge.errors import MissingExtra
from loramerge.report.document import ImagePart, Report, Table
from loramerge.report.svg import draw_lines, draw_panels

__all__ = ["INSTALL", "page", "require_jinja"]

INSTALL = "pip install 'loramerge[report]'"
_FOLDER = Path(__file__).parent / "templates"
_LONG, _MOST = 400, 20_000  # characters of a text that is folded, and of one that is cut
_ROWS = 2000  # of a table
_TURNS = (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))  # lines and directions
_CONTROLS = {n: "�" for n in (*range(32), *range(127, 160), *_TURNS) if n not in (9, 10)}


def require_jinja() -> None:
    """Check that pages can be made.

    Raises:
        MissingExtra: if Jinja is not installed.
    """
    if find_spec("jinja2") is None:
        raise MissingExtra("HTML pages need Jinja", hint=INSTALL)


def page(report: Report) -> bytes:
    """Return a report as an HTML page in UTF-8; the same report gives the same bytes.

    Raises:
        MissingExtra: if Jinja is not installed.
    """
    style = (_FOLDER / "page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    template, markup = _template()
    # of the texts, only the style and the policy are this package's own
    text = template.render(
        report=report, sections=report.shown(), style=markup(style), policy=markup(policy)
    )
    return str(text).encode("utf-8", "replace")


@cache
def _template() -> tuple[Any, Any]:
    require_jinja()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return value.translate(_CONTROLS) if plain else value

    jinja = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, keep_trailing_newline=True
    )
    jinja.globals.update(
        draw_lines=draw_lines,
        draw_panels=draw_panels,
        shade=_shade,
        share=_share,
        data_of=_data_of,
        unfolded=_unfolded,
        kind_of=lambda one: type(one).__name__.lower(),
        long=_LONG,
        most=_MOST,
        rows=_ROWS,
    )
    return jinja.from_string((_FOLDER / "page.html").read_text("utf-8")), Markup


def _shade(value: float | None, strongest: float) -> str:
    """Return the class of a cell's colour: `p1` to `p10`, `n1` to `n10` below zero, or nothing."""
    if value is None:
        return ""
    level = min(10, round(10 * abs(value) / strongest))
    return f"{'n' if value < 0 else 'p'}{level}" if level else ""


def _share(value: float, longest: float) -> str:
    """Return the length of a bar, 0 to 100."""
    return f"{min(100.0, 100 * abs(value) / longest):.1f}"


def _data_of(picture: ImagePart) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.data).decode()}"


def _unfolded(table: Table) -> Table:
    return replace(table, folded=False)
