"""Generate images of bases with adapters, and write them as one picture."""

from __future__ import annotations

from pathlib import Path

from loramerge.files.atomic import check_target
from loramerge.files.writer import write_bytes
from loramerge.steps.outputs import default_name, sum_name
from loramerge.steps.parameters import Context, Verb
from loramerge.verbs.preview.drawing import draw_sheet
from loramerge.verbs.preview.models import base_name
from loramerge.verbs.preview.page import page_of
from loramerge.verbs.preview.parameters import Preview
from loramerge.verbs.preview.predicted import predict
from loramerge.verbs.preview.result import PreviewResult

__all__ = ["VERB", "compute_preview", "preview"]


def preview(parameters: Preview, context: Context = Context()) -> PreviewResult:
    """Generate the images and write them.

    Raises:
        LoramergeError: see `train.drawing.preview.preview`.
    """
    parameters.check()
    path = output_path(parameters, context)
    pages = [path.with_suffix(".html")] if parameters.html else []
    for one in (path, *pages):
        check_target(one, force=parameters.force)
    sheet = draw_sheet(parameters, context)
    from loramerge.report.pictures import write_png

    picture = sheet.picture()
    write_png(picture, path)
    if pages:
        write_bytes(pages[0], page_of(parameters, path, sheet), force=True)
    outputs = [str(one) for one in (path, *pages)]
    return PreviewResult(str(path), outputs, sheet.rows, sheet.columns, sheet.changes, sheet.like)


def compute_preview(parameters: Preview, context: Context = Context()) -> PreviewResult:
    """Draw without writing; the result holds the images.

    Raises:
        LoramergeError: see `train.drawing.preview.preview`.
    """
    parameters.check()
    sheet = draw_sheet(parameters, context)
    return PreviewResult(None, [], sheet.rows, sheet.columns, sheet.changes, sheet.like, sheet)


def output_path(parameters: Preview, context: Context = Context()) -> Path:
    """Return the path of the picture that `preview` writes."""
    if parameters.output is not None:
        return Path(parameters.output)
    bases = "+".join(base_name(name, context) for name in parameters.base)
    subject = sum_name(parameters.adapters) or bases
    return default_name(f"preview-{subject}", ".png")


VERB = Verb(
    "preview", Preview, "picture", preview, predict, uses_device=True, output_path=output_path
)
