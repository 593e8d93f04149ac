"""A page about a run, in one file: settings, data, curves as SVG, samples as PNG, findings."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

__all__ = ["curve", "image", "listing", "page", "table"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
       vertical-align: top } th { font-weight: 600 } td:first-child { color: #555 }
img { max-width: 100%; height: auto } svg { max-width: 100%; height: auto }
.error { color: #a00 } .warning { color: #850 }
"""
_WIDE, _HIGH, _EDGE = 900, 260, 46
_PALE, _DARK = 'stroke="#bcd" stroke-width="1"', 'stroke="#147" stroke-width="2"'
_POINTS = 600  # of a curve; more are averaged


def page(title: str, sections: Iterable[tuple[str, str]]) -> bytes:
    """Return a page of sections, (heading, HTML), that needs no other file."""
    parts = [f"<h2>{html.escape(heading)}</h2>\n{body}" for heading, body in sections if body]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</html>\n"
    ).encode()


def table(rows: Mapping[str, Any]) -> str:
    """Return pairs as a table."""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>\n"
        for name, value in rows.items()
    )
    return f"<table>\n{cells}</table>" if rows else ""


def listing(lines: Iterable[tuple[str, str]]) -> str:
    """Return (class, text) lines as a list."""
    items = "".join(
        f'<li class="{html.escape(kind)}">{html.escape(text)}</li>\n' for kind, text in lines
    )
    return f"<ul>\n{items}</ul>" if items else ""


def image(path: Path, about: str) -> str:
    """Return a PNG of a file as part of the page; nothing where there is none."""
    if not path.is_file():
        return ""
    text = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(about)}" src="data:image/png;base64,{text}">'


def curve(values: Sequence[float], name: str) -> str:
    """Return a line over steps as SVG, with a smoothed one in front; nothing for fewer than two."""
    if len(values) < 2:
        return ""
    points = _thinned(values)
    low, high = min(points), max(points)
    span = high - low or 1.0
    across, up = _WIDE - 2 * _EDGE, _HIGH - 2 * _EDGE

    def line(found: Sequence[float], style: str) -> str:
        places = " ".join(
            f"{_EDGE + across * n / (len(found) - 1):.1f},"
            f"{_HIGH - _EDGE - up * (value - low) / span:.1f}"
            for n, value in enumerate(found)
        )
        return f'<polyline fill="none" {style} points="{places}"/>'

    middle = _HIGH - _EDGE
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{html.escape(name)}" '
        'font-size="12" fill="#555">'
        f'<line x1="{_EDGE}" y1="{middle}" x2="{_WIDE - _EDGE}" y2="{middle}" stroke="#999"/>'
        f"{line(points, _PALE)}{line(_smoothed(points), _DARK)}"
        f'<text x="4" y="{_EDGE}">{high:.3g}</text><text x="4" y="{middle}">{low:.3g}</text>'
        f'<text x="{_EDGE}" y="{_HIGH - 20}">step 0</text>'
        f'<text x="{_WIDE - _EDGE}" y="{_HIGH - 20}" text-anchor="end">step {len(values)}</text>'
        f'<text x="{_EDGE}" y="20">{html.escape(name)}</text></svg>'
    )


def _thinned(values: Sequence[float]) -> list[float]:
    """Return at most a number of points, each the mean of its part."""
    if len(values) <= _POINTS:
        return list(values)
    bounds = [n * len(values) // _POINTS for n in range(_POINTS + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return a running mean over a twentieth of the curve."""
    share = 1 / max(1, len(values) // 20)
    found = [values[0]]
    for value in values[1:]:
        found.append(found[-1] + share * (value - found[-1]))
    return found
