"""Check the images before a run, and predict its time and memory."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge.algebra.workers import available_cpus
from loramerge.errors import LoramergeError
from loramerge.events import Notify, Progress, Warn, ignore
from loramerge.files.digest import sha256_of_file
from loramerge.train.dataset.arrange import Arranged
from loramerge.train.dataset.buckets import Size
from loramerge.train.dataset.images import opened
from loramerge.train.dataset.length import in_steps
from loramerge.train.dataset.scan import Picture
from loramerge.train.device.workers import begin_workers
from loramerge.train.drawing.prior import drawing_seconds, foreseen
from loramerge.train.memory.budget import Rung
from loramerge.train.memory.estimate import Estimate, Shape, estimate, shape_of
from loramerge.train.memory.needs import PHASES, Needs
from loramerge.train.models.loading import load_tokenizers
from loramerge.train.models.refusals import refuse_large
from loramerge.train.models.texts import count_tokens
from loramerge.train.preamble import arrange_images, require_possible
from loramerge.train.spec.spec import Spec

__all__ = ["Check", "Memory", "check"]

_AHEAD = 64  # images read at a time


@dataclass(frozen=True)
class Memory:
    """The predicted memory of a run, and the settings that were compared.

    Args:
        given: available bytes.
        stated: True if the user gave them, False if they are the free memory.
        rung: the chosen settings; None if nothing fits or memory cannot be predicted.
        ladder: all settings that were compared, each with less memory than the one before.
        needs: memory of the chosen settings, by phase.
    """

    given: int | None = None
    stated: bool = False
    rung: Rung | None = None
    ladder: Sequence[Rung] = ()
    needs: Needs | None = None

    def json(self) -> dict[str, Any]:
        """Return the entries of `--json`."""
        return {
            "memory": None if self.rung is None else self.rung.memory,
            "memory_given" if self.stated else "memory_free": self.given,
            "phases": None if self.needs is None else {
                name: getattr(self.needs, name) for name in PHASES
            },
            "chosen": None if self.rung is None else self.rung.json(),
            "ladder": [rung.json() for rung in self.ladder],
        }  # fmt: skip


@dataclass
class Check:
    """The findings of a dry run.

    Args:
        images, regular: number of images of the subject, and of regularisation.
        shown: images that an epoch shows.
        buckets: size → number of images.
        sources: source of captions → number of images.
        unreadable: (file, reason).
        duplicates: groups of identical files.
        uncaptioned: images of the subject with neither caption nor trigger.
        enlarged: images smaller than their bucket.
        tokens: minimum, median and maximum length of the captions, in tokens.
        most_tokens: tokens that the text encoders read; longer captions are cut.
        cut: images whose captions are cut.
        estimate: None for a single file, which has no configuration.
        prompts: one for each regularisation image that the base will generate.
        drawing: seconds to generate them, if none is in the cache.
        memory: predicted memory.
    """

    images: int
    regular: int
    shown: int
    epochs: float
    steps: int
    batches: int
    resolution: int
    buckets: dict[Size, int]
    sources: dict[str, int]
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    duplicates: list[list[Path]] = field(default_factory=list)
    uncaptioned: list[Path] = field(default_factory=list)
    enlarged: list[Path] = field(default_factory=list)
    tokens: tuple[int, float, int] | None = None
    most_tokens: int | None = None
    cut: list[Path] = field(default_factory=list)
    tags: list[tuple[str, int]] = field(default_factory=list)
    estimate: Estimate | None = None
    prompts: list[str] = field(default_factory=list)
    drawing: float | None = None
    memory: Memory = Memory()

    @property
    def modules(self) -> int:
        """Number of modules that would be trained."""
        return 0 if self.estimate is None else self.estimate.modules

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        found = self.estimate
        return {
            "images": self.images,
            "regularisation": self.regular,
            "to_draw": self.prompts,
            "drawing_seconds": None if self.drawing is None else round(self.drawing, 3),
            "shown_per_epoch": self.shown,
            "epochs": round(self.epochs, 3),
            "steps": self.steps,
            "batches_per_epoch": self.batches,
            "resolution": self.resolution,
            "buckets": {f"{w}x{h}": n for (w, h), n in self.buckets.items()},
            "captions": self.sources,
            "unreadable": [{"file": str(path), "why": why} for path, why in self.unreadable],
            "duplicates": [[str(path) for path in group] for group in self.duplicates],
            "without_caption": [str(path) for path in self.uncaptioned],
            "enlarged": [str(path) for path in self.enlarged],
            "tokens": None if self.tokens is None else dict(
                zip(("least", "median", "most"), self.tokens, strict=True)
            ),
            "tokens_read": self.most_tokens,
            "captions_cut": [str(path) for path in self.cut],
            "tags": [list(pair) for pair in self.tags],
            "modules": None if found is None else found.modules,
            "parameters": None if found is None else found.parameters,
            "seconds": None if found is None else round(found.seconds, 3),
            **self.memory.json(),
        }  # fmt: skip


def check(spec: Spec, notify: Notify = ignore, *, whole: bool = True) -> Check:
    """Check every image of a run, without writing anything or reading weights.

    Args:
        whole: read images to their ends, and count the tokens of captions; otherwise only headers are
            read.

    Raises:
        MissingFile: if no image can be read.
        MissingExtra: if a package that the run needs is not installed.
    """
    require_possible(spec, notify)
    shape = shape_of(spec.config or spec.base)
    unit, own = (8, 512) if shape is None else (shape.unit, shape.resolution)
    arranged, missing = arrange_images(spec, unit, own, notify)
    broken, duplicates = _read(arranged.pictures, notify) if whole else ({}, [])
    arranged = foreseen(arranged.without(broken), missing)
    arranged, _ = arranged.divided(spec.validation, spec.settings.seed)
    order = arranged.order(spec.data.batch, spec.settings.seed)
    batches = len(order.batches(0))
    spec = in_steps(spec, order)
    steps = spec.settings.steps
    found = Check(
        images=len(arranged.dataset.subject),
        regular=len(arranged.dataset.regular),
        shown=order.shown,
        epochs=steps * spec.settings.accumulate / batches,
        steps=steps,
        batches=batches,
        resolution=arranged.resolution,
        buckets=dict(Counter(arranged.buckets).most_common()),
        sources=dict(arranged.dataset.sources),
        unreadable=arranged.dataset.unreadable,
        duplicates=duplicates,
        uncaptioned=[p.path for p in arranged.dataset.subject if not arranged.captioning.whole(p)],
        enlarged=[
            p.path
            for p, (w, h) in zip(arranged.pictures, arranged.buckets, strict=True)
            if p.size[0] < w or p.size[1] < h
        ],
        tags=list(arranged.tags(20).items()),
        prompts=[one.prompt for one in missing],
    )
    if whole:
        _add_tokens(found, spec, arranged, shape, notify)
    if shape is not None:
        refuse_large(shape.architecture, shape.denoiser, shape.factor, arranged.buckets)
        _, device = begin_workers(spec.device)
        largest = max(found.buckets, key=lambda size: size[0] * size[1])
        found.estimate = estimate(spec, shape, largest, device, notify)
        if spec.prior is not None:
            found.drawing = drawing_seconds(spec, spec.prior, shape, len(missing), largest, device)
    return found


def _read(pictures: list[Picture], notify: Notify) -> tuple[dict[Path, str], list[list[Path]]]:
    """Read every image to its end; return the broken ones and groups of identical files."""
    broken: dict[Path, str] = {}
    by_digest: dict[str, list[Path]] = {}
    for index, (path, digest, why) in enumerate(_read_ahead(pictures), 1):
        if why is not None:
            broken[path] = why
        else:
            by_digest.setdefault(digest, []).append(path)
        if index % 100 == 0 or index == len(pictures):
            notify(Progress("reading images", index, len(pictures), "images"))
    return broken, [group for group in by_digest.values() if len(group) > 1]


def _read_ahead(pictures: list[Picture]) -> Iterator[tuple[Path, str, str | None]]:
    """Yield (path, digest, reason why it cannot be read) in order; read a few ahead."""
    with ThreadPoolExecutor(available_cpus()) as pool:
        for first in range(0, len(pictures), _AHEAD):
            yield from pool.map(_read_one, pictures[first : first + _AHEAD])


def _read_one(picture: Picture) -> tuple[Path, str, str | None]:
    try:
        opened(picture.path)
        return picture.path, sha256_of_file(picture.path), None
    except LoramergeError as error:
        return picture.path, "", error.problem


def _add_tokens(
    found: Check, spec: Spec, arranged: Arranged, shape: Shape | None, notify: Notify
) -> None:
    folder = spec.config or spec.base
    try:
        tokenizers = load_tokenizers(folder) if folder.is_dir() else {}
    except LoramergeError as error:
        notify(Warn(f"the length of captions is not known: {error.problem}"))
        return
    if not tokenizers:
        return
    lengths = {name: _length(name, one, shape) for name, one in tokenizers.items()}
    most = max(lengths.values())  # tokens beyond the longest limit are lost
    tokenizers = {name: one for name, one in tokenizers.items() if lengths[name] == most}
    counts = {
        p.path: count_tokens(tokenizers, arranged.captioning.whole(p)) for p in arranged.pictures
    }
    values = list(counts.values())
    found.tokens = (min(values), statistics.median(values), max(values))
    found.most_tokens = most
    found.cut = [path for path, count in counts.items() if count > most]


def _length(component: str, tokenizer: Any, shape: Shape | None) -> int:
    if shape is None:
        return int(tokenizer.model_max_length)
    return shape.architecture.text_length(shape.denoiser, component, tokenizer)
