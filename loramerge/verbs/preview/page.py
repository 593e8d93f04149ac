"""The HTML page of a preview."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loramerge.library.paths import bare
from loramerge.verbs.preview.parameters import Preview

if TYPE_CHECKING:
    from loramerge.train.drawing.preview import Sheet

__all__ = ["page_of"]


def page_of(parameters: Preview, path: Path, sheet: Sheet) -> bytes:
    """Return the page: the picture, the differences of its columns, and how it was made."""
    from loramerge.report.document import ImagePart, Report, Section, facts
    from loramerge.report.page import page

    settings = {
        "base": ", ".join(bare(Path(name).name) for name in parameters.base),
        "sampler": parameters.sampler or "as usual",
        "steps": parameters.steps, "guidance": parameters.guidance or "as usual",
        "guidance rescale": _rescale(parameters),
        "negative prompt": parameters.negative or "none",
    }  # fmt: skip
    changes = {
        label: f"{change:.2f} of 255"
        for label, change in zip(sheet.columns, sheet.changes, strict=True)
    }
    like = {
        name: f"nearest to {column}: {apart:.2f} of 255 apart"
        for name, (column, apart) in sheet.like.items()
    }
    sections = [
        Section("Images", [ImagePart(path.read_bytes(), "A grid of images")]),
        Section("Mean difference to the first column of the base", [facts(changes)]),
        Section("Models without adapters", [facts(like)]),
        Section("Settings", [facts(settings)]),
    ]
    return page(Report(path.stem, "", sections))


def _rescale(parameters: Preview) -> str:
    chosen = parameters.guidance_rescale
    return "as the base needs it" if chosen is None else f"{chosen:g}"
