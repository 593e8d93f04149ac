"""The result of `preview`, which a notebook shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.errors import UsageError
from loramerge.files.atomic import check_target
from loramerge.steps.shown import Shown
from loramerge.verbs.preview.parameters import check_name

if TYPE_CHECKING:
    from loramerge.train.drawing.preview import Sheet

__all__ = ["PreviewResult"]


@dataclass(repr=False)
class PreviewResult(Shown):
    """The images that were generated, which a notebook shows.

    Args:
        output: the PNG file; None if nothing is written.
        outputs: the PNG file and the HTML page; empty if nothing is written.
        changes: for each column, the mean difference to the first column of its base, 0 to 255.
        like: model without adapters → (nearest column, mean difference), 0 to 255.
    """

    headline = ("output", "rows", "columns")

    output: str | None
    outputs: list[str]
    rows: list[str]
    columns: list[str]
    changes: list[float] = field(default_factory=list)
    like: dict[str, tuple[str, float]] = field(default_factory=dict)
    sheet: Sheet | None = None

    @property
    def image(self) -> Any:
        """The labelled grid, an image of Pillow.

        Raises:
            UsageError: if only the file was kept.
        """
        return self._kept().picture()

    @property
    def images(self) -> list[list[Any]]:
        """The single images of Pillow: rows are prompts and seeds, columns as in `columns`."""
        return self._kept().cells

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write the grid as a PNG file.

        Raises:
            UsageError: if the name is not that of a PNG file.
            OutputExists: if it exists and may not be replaced.
        """
        from loramerge.report.pictures import write_png

        place = Path(path)
        check_name(place)
        write_png(self.image, check_target(place, force=force))
        self.output, self.outputs = str(place), [str(place)]

    def _kept(self) -> Sheet:
        if self.sheet is None:
            raise UsageError(
                "these images are no longer in memory, only in the file", file=self.output
            )
        return self.sheet

    def _repr_png_(self) -> bytes | None:
        from loramerge.report.pictures import png_bytes

        return None if self.sheet is None else png_bytes(self.sheet.picture())

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": self.outputs,
            "rows": self.rows,
            "columns": [
                {"label": label, "change": round(change, 4)}
                for label, change in zip(self.columns, self.changes, strict=True)
            ],
            "like": {
                name: {"column": column, "difference": round(apart, 4)}
                for name, (column, apart) in self.like.items()
            },
        }
