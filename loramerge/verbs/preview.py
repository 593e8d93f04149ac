"""preview: images of bases with adapters, side by side, from the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import trigger_words
from loramerge.algebra.weights import Weight
from loramerge.checkpoint.files import find_files
from loramerge.errors import Message, Setting, UsageError, listed
from loramerge.events import Note, Progress, Warn
from loramerge.files.atomic import check_target
from loramerge.files.writer import write_bytes
from loramerge.library.lookup import bare
from loramerge.library.shipped import shipped_name
from loramerge.parameters import Bounds
from loramerge.steps.inputs import adapter_of, base_path, family_of_file, weighted
from loramerge.steps.outputs import default_name, sum_name
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction
from loramerge.steps.references import Reference
from loramerge.steps.shown import Shown

if TYPE_CHECKING:
    from loramerge.train.drawing.preview import Column, Sheet
    from loramerge.train.models.pipeline import Pipeline

__all__ = ["VERB", "Preview", "PreviewResult", "compute_preview", "preview"]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Generate images with adapters, side by side.

    Columns are the base alone and each adapter at each weight; rows are prompts and seeds. All images of
    a row start from the same noise, so columns can be compared. Nothing is baked.
    """

    adapters: Annotated[
        tuple[Reference, ...],
        Doc("Adapters with weights: NAME:0.8.", ("ADAPTER",), None, "adapters"),
    ] = ()
    base: Annotated[
        tuple[str, ...],
        Doc(
            "Model to generate with: a diffusers folder, a single file, or a registered name; may be "
            "repeated.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ]
    baked: Annotated[
        tuple[str, ...],
        Doc(
            "Further model, shown beside these without adapters, such as the result of bake; may be "
            "repeated.",
            metavar="BASE",
            completes="bases",
        ),
    ] = ()
    prompt: Annotated[
        tuple[str, ...],
        Doc("Prompt; may be repeated [default: no prompt].", ("--prompt", "-p"), "TEXT"),
    ] = ()
    seed: Annotated[
        tuple[int, ...], Bounds(ge=0), Doc("Seed of the noise; may be repeated [default: 0].")
    ] = ()
    weight: Annotated[
        tuple[str, ...],
        Doc(
            "Show every adapter at this weight, times its own; several with commas, such as 0.5,1,1.5; "
            "may be repeated [default: 1].",
            ("--weight", "-w"),
            "W",
            number=float,
        ),
    ] = ()
    together: Annotated[bool, Doc("Apply all adapters at once, in one column.")] = False
    no_base: Annotated[bool, Doc("Leave out the column of the base alone.")] = False
    negative: Annotated[str, Doc("Negative prompt.")] = ""
    size: Annotated[
        int | None,
        Bounds(ge=8),
        Doc("Side of an image in pixels [default: the base's resolution]."),
    ] = None
    steps: Annotated[int, Bounds(ge=1, le=1000), Doc("Steps of the sampler.")] = 25
    sampler: Annotated[
        Literal["ddim", "euler", "euler-a", "heun", "dpm++", "dpm++-karras", "unipc"] | None,
        Doc("Sampler, for SD1, SD2 and SDXL [default: ddim]."),
    ] = None
    guidance: Annotated[
        float | None,
        Bounds(ge=1),
        Doc(
            "Classifier-free guidance; for Flux.1 dev the guidance that is an input of the "
            "model; 1 is none [default: 7; 3.5 for Flux.1 dev, none for schnell]."
        ),
    ] = None
    guidance_rescale: Annotated[
        float | None,
        Bounds(ge=0, le=1),
        Doc(
            "Guidance rescale, from 0 to 1; weakens oversaturated colours on a base with zero "
            "terminal SNR [default: 0.7 there, else 0]."
        ),
    ] = None
    clip_skip: Annotated[
        int | None,
        Bounds(ge=1),
        Doc(
            "Layer of the text encoder that is used, counted from the last as in kohya's "
            "scripts: 1 is the last, 2 the one before (SD1, SD2) [default: 1]."
        ),
    ] = None
    prediction: Annotated[
        Literal["epsilon", "v", "sample"] | None,
        Doc("What a UNet predicts: the noise, v or the image [default: read from the base]."),
    ] = None
    config: Annotated[
        str | None,
        Doc(
            "For single files: any diffusers folder of their family, for configurations and "
            "tokenizers.",
            metavar="DIR",
            completes="bases",
        ),
    ] = None
    html: Annotated[bool, Doc("Also write an HTML page beside the image.")] = False
    output: Annotated[
        str | None,
        Doc("PNG file to write [default: preview of the adapters].", ("--output", "-o"), "FILE",
            recipe=False, path=True),
    ] = None  # fmt: skip
    force: Annotated[bool, Doc("Replace an existing output.", ("--force", "-f"), recipe=False)] = (
        False
    )

    def check(self) -> None:
        """Refuse contradictory parameters before any file is opened.

        Raises:
            UsageError: naming the problem.
        """
        if not self.base:
            raise UsageError("preview needs a base", hint=("give ", Setting("base")))
        if self.no_base and not self.adapters:
            raise UsageError("without adapters and without the base there is nothing to show")
        if self.output is not None:
            _check_name(Path(self.output))
        self.weights()

    def weights(self) -> tuple[float, ...]:
        """Return the weights to show every adapter at.

        Raises:
            UsageError: if one is not a finite number.
        """
        found = []
        for part in (one.strip() for text in self.weight for one in str(text).split(",")):
            try:
                found.append(float(part))
            except ValueError:
                found.append(math.nan)
            if not math.isfinite(found[-1]):
                raise UsageError(f"{part!r} is not a weight", expected="numbers such as 0.5,1,1.5")
        return tuple(found) or (1.0,)


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
        _check_name(place)
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


def _check_name(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(
            "a preview is a PNG file",
            file=path,
            hint=("give ", Setting("output", str(path.with_suffix(".png")))),
        )


def preview(parameters: Preview, context: Context = Context()) -> PreviewResult:
    """Generate the images and write them.

    Raises:
        LoramergeError: see `train.drawing.preview.preview`.
    """
    parameters.check()
    path = _output(parameters, context)
    pages = [path.with_suffix(".html")] if parameters.html else []
    for one in (path, *pages):
        check_target(one, force=parameters.force)
    sheet = _drawn(parameters, context)
    from loramerge.report.pictures import write_png

    picture = sheet.picture()
    write_png(picture, path)
    if pages:
        write_bytes(pages[0], _page(parameters, path, sheet), force=True)
    outputs = [str(one) for one in (path, *pages)]
    return PreviewResult(str(path), outputs, sheet.rows, sheet.columns, sheet.changes, sheet.like)


def compute_preview(parameters: Preview, context: Context = Context()) -> PreviewResult:
    """Draw without writing; the result holds the images.

    Raises:
        LoramergeError: see `train.drawing.preview.preview`.
    """
    parameters.check()
    sheet = _drawn(parameters, context)
    return PreviewResult(None, [], sheet.rows, sheet.columns, sheet.changes, sheet.like, sheet)


def predict(parameters: Preview, context: Context = Context()) -> Prediction:
    """Predict how many images are generated, and the memory and time of that.

    Raises:
        LoramergeError: if a base or an adapter cannot be opened.
    """
    parameters.check()
    paths = [base_path(name, context) for name in (*parameters.base, *parameters.baked)]
    for reference in parameters.adapters:
        adapter_of(reference, context)
    columns = _count_columns(parameters)
    images = columns * len(parameters.prompt or ("",)) * len(parameters.seed or (0,))
    found = Prediction(remarks=[f"images to generate: {images}, columns: {columns}"])
    if find_spec("torch") is None:
        found.remarks.append("memory and time are not predicted, since torch is not installed")
        return found
    from loramerge.train.device.workers import begin_workers
    from loramerge.train.drawing.seconds import image_seconds

    half = _half(context)
    found.memory += (2 if half else 4) * max(_elements(path) for path in paths)
    _, device = begin_workers(context.device)
    steps, size = parameters.steps, parameters.size
    times = [image_seconds(one, device, steps=steps, size=size, half=half) for one in paths]
    known = [time for time in times if time is not None]
    found.seconds = images * sum(known) / len(known) if known else 0.0
    return found


def _count_columns(parameters: Preview) -> int:
    """Return the number of columns of all bases together."""
    weights = len(parameters.weights())
    adapters = min(1, len(parameters.adapters)) if parameters.together else len(parameters.adapters)
    each = (not parameters.no_base) + weights * adapters
    return each * len(parameters.base) + len(parameters.baked)


def _elements(path: Path) -> int:
    """Return the number of values in the files of a base."""
    files = find_files(path)
    return sum(t.size for file in files.weights for t in file.open()[0].values())


def _half(context: Context) -> bool:
    """Return whether bases are loaded in half precision."""
    from loramerge.train.device.workers import usual_precision

    return usual_precision(context.device) == "bf16"


VERB = Verb("preview", Preview, "picture", preview, predict, uses_device=True)


def _output(parameters: Preview, context: Context) -> Path:
    if parameters.output is not None:
        return Path(parameters.output)
    bases = "+".join(_base_name(name, context) for name in parameters.base)
    subject = sum_name(parameters.adapters) or bases
    return default_name(f"preview-{subject}", ".png")


def _base_name(name: str, context: Context) -> str:
    """Return the name of a base for labels and file names."""
    path = base_path(name, context)
    return shipped_name(path) or bare(path.name)


def _adapter(reference: Reference, context: Context) -> Adapter:
    adapter = adapter_of(reference, context)
    if adapter.embeddings:
        names = ", ".join(adapter.embeddings)
        context.notify(Warn(f"{reference.label}: a preview does not use its embeddings: {names}"))
    return adapter


def _note_words(adapters: Sequence[Adapter], context: Context) -> None:
    """Name the trigger words of adapters that are drawn without a prompt."""
    words = dict.fromkeys(word for one in adapters for word in trigger_words(one.info.metadata))
    if words:
        context.notify(Note(f"no prompt is given; trigger words: {listed(list(words), 6)}"))


def _columns(parameters: Preview, adapters: list[tuple[Reference, Adapter]]) -> list[Column]:
    from loramerge.train.drawing.preview import Column

    found = [] if parameters.no_base else [Column("base")]
    names = told_apart([r.label for r, _ in adapters], [r.name for r, _ in adapters])
    grid = [
        [(_label(name, r, times), weighted(weighted(a, r.weight), Weight(times)))
         for times in parameters.weights()]
        for name, (r, a) in zip(names, adapters, strict=True)
    ]  # fmt: skip
    if parameters.together:  # a column for each weight
        found += [
            Column(" + ".join(n for n, _ in scaled), tuple(a for _, a in scaled))
            for scaled in zip(*grid, strict=True)
        ]
    else:  # the columns of an adapter stand together
        found += [Column(name, (adapter,)) for row in grid for name, adapter in row]
    return found


def told_apart(labels: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return labels that differ where paths do: by folders where these differ, else by numbers."""
    found = list(labels)
    for label in set(labels):
        places = [n for n, one in enumerate(labels) if one == label]
        files = list(dict.fromkeys(paths[n] for n in places))
        if len(files) == 1:
            continue
        folders = [Path(file).parent.name for file in files]
        apart = len(set(folders)) == len(folders) and all(folders)
        for place in places:
            number = files.index(paths[place])
            found[place] = f"{folders[number]}/{label}" if apart else f"{label} ({number + 1})"
    return found


def _label(name: str, reference: Reference, times: float) -> str:
    own = "" if reference.written == "1" else f" at {reference.weight_in_words}"
    if times == 1.0:
        return name + own
    return f"{name}{own} × {times:g}" if own else f"{name} at {times:g}"


def _drawn(parameters: Preview, context: Context) -> Sheet:
    adapters = [(r, _adapter(r, context)) for r in parameters.adapters]
    if not any(parameters.prompt):
        _note_words([adapter for _, adapter in adapters], context)
    from loramerge.train.device.exhaustion import naming_exhaustion
    from loramerge.train.device.threads import torch_threads
    from loramerge.train.device.workers import begin_workers
    from loramerge.train.drawing.preview import preview as drawn
    from loramerge.train.drawing.sampling import Drawing
    from loramerge.train.models.refusals import refuse_idle, refuse_large

    _, device = begin_workers(context.device)

    def naming(doing: str) -> AbstractContextManager[None]:
        return naming_exhaustion(device, doing, lambda: _advice(device))

    def loader(name: str) -> Callable[[], Pipeline]:
        def load() -> Pipeline:
            with naming(f"loading {name}"):
                return _kept(name, parameters, context, device)

        return load

    def drawing(pipeline: Pipeline) -> Drawing:
        side = (parameters.size or pipeline.resolution) // pipeline.unit * pipeline.unit
        if not side:
            raise UsageError(
                f"this base generates at least {pipeline.unit} pixels", found=parameters.size
            )
        size = (side, side)
        kind = pipeline.architecture
        asked = {
            "negative": parameters.negative,
            "clip_skip": parameters.clip_skip,
            "guidance_rescale": parameters.guidance_rescale,
        }
        refuse_idle(kind, pipeline.path, asked)
        refuse_large(kind, pipeline.denoiser.config, pipeline.factor, [size])
        return Drawing(
            size,
            parameters.steps,
            parameters.guidance,
            parameters.guidance_rescale,
            parameters.sampler,
        )

    def loaders(names: Sequence[str]) -> list[tuple[str, Callable[[], Pipeline]]]:
        return [(_base_name(name, context), loader(name)) for name in names]

    with torch_threads(context.torch_threads), naming("generating images"):
        return drawn(
            loaders(parameters.base),
            _columns(parameters, adapters),
            parameters.prompt or ("",),
            parameters.seed or (0,),
            drawing,
            alone=loaders(parameters.baked),
            negative=parameters.negative,
            skip=parameters.clip_skip,
            notify=context.notify,
        )


def _advice(device: Any) -> Message:
    """Return the advice for a device with too little memory."""
    rest = () if device.type == "cpu" else (", or ", Setting("device", "cpu"))
    return ("end other programs, or give a smaller ", Setting("size"), *rest)


def _kept(name: str, parameters: Preview, context: Context, device: Any) -> Pipeline:
    """Return a loaded model: the one that drew last, if it is the same and was kept."""
    if context.models is None:
        return _loaded(name, parameters, context).to(device)
    path = base_path(name, context)
    states = [(f.path, f.path.stat().st_mtime_ns) for f in find_files(path).weights]
    key = (str(path), *states, parameters.config, parameters.prediction, str(device))
    if key not in context.models:
        context.models.clear()  # before the next is loaded
        context.notify(Progress("loading", 0, 1, "models", _base_name(name, context)))
        context.models[key] = _loaded(name, parameters, context).to(device)
        context.notify(Progress("loading", 1, 1, "models"))
    found: Pipeline = context.models[key]
    return found


def _loaded(name: str, parameters: Preview, context: Context) -> Pipeline:
    import torch

    from loramerge.train.models.pipeline import load_pipeline

    path = base_path(name, context)
    config = None if parameters.config is None else base_path(parameters.config, context)
    dtype = torch.bfloat16 if _half(context) else torch.float32
    return load_pipeline(
        path,
        dtype=dtype,
        config=config,
        family=family_of_file(path),
        prediction=parameters.prediction,
    )


def _rescale(parameters: Preview) -> str:
    chosen = parameters.guidance_rescale
    return "as the base needs it" if chosen is None else f"{chosen:g}"


def _page(parameters: Preview, path: Path, sheet: Sheet) -> bytes:
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
