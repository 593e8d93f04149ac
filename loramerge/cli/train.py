"""The command `train`: train an adapter on images."""

from __future__ import annotations

from typing import Any

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.train import VERB
from loramerge.verbs.train.result import TrainResult

_PHASES = {
    "samples": "drawing samples",
    "regularisation": "generating regularisation images",
    "images": "encoding images",
    "texts": "encoding captions",
}


def render(result: TrainResult) -> None:
    """Show the result of a training, or of a dry run."""
    if result.check is not None:
        _render_check(result.check)
        return
    if result.output is None:
        return  # a process that helped another
    lines = show.written(result.output, show.size(result.size))
    lines += [
        ("format", f"{result.dialect}, {result.dtype}"),
        ("modules", str(result.modules)),
        ("rank", show.ranks(result.ranks)),
        (
            "trained",
            f"{show.count(result.done, 'step')}, {_epochs(result.epochs)} of "
            f"{show.count(result.images, 'image')}",
        ),
    ]
    if result.unfinished:
        lines.append(("unfinished", f"stopped after step {result.done} of {result.steps}"))
    if result.lossy:
        lines += show.errors(result.lossy, result.relative_error, result.norm_kept, result.worst)
    if result.loss is not None:
        lines.append(("loss", f"from {result.loss[0]:.4f} to {result.loss[1]:.4f}"))
    if result.validation is not None:
        first, last = result.validation
        lines.append(("validation loss", f"from {first:.4f} to {last:.4f}"))
    lines += [(word, str(text)) for word, text in
              (("report", result.report), ("samples", result.samples)) if text]  # fmt: skip
    show.table(lines)


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:.3g} epochs"


def _render_check(found: Any) -> None:
    batches = show.count(found.batches, "batch", "batches")
    sizes = [f"{w}×{h} pixels ({show.count(n, 'image')})" for (w, h), n in found.buckets.items()]
    lines = [
        ("images", f"{found.images}, and {show.count(found.regular, 'regularisation image')}"),
        (
            "steps",
            f"{found.steps} ({_epochs(found.epochs)} of {batches})",
        ),
        ("buckets", _several(sizes)),
        (
            "captions",
            ", ".join(f"{name} ({show.count(n, 'image')})" for name, n in found.sources.items()),
        ),
    ]
    if found.tokens is not None:
        least, median, most = found.tokens
        span = f"{least}" if least == most else f"{least} to {most}, median {median:g}"
        lines.append(("caption length", f"{span} tokens (limit {found.most_tokens})"))
    if found.estimate is not None:
        one = found.estimate
        lines += [
            ("trains", f"{one.parameters:,} parameters in {show.count(one.modules, 'module')}"),
            ("takes", f"about {_time(one.seconds)}{_taken(found.memory)}"),
            *_ladder(found.memory),
        ]
    if found.prompts:
        named = _several([repr(text) for text in dict.fromkeys(found.prompts)], 3)
        lines.append(("to generate", f"up to {len(found.prompts)} regularisation images: {named}"))
        if found.drawing is not None:
            lines.append(("", f"in about {_time(found.drawing)}, before training"))
    for word, paths in (
        ("cut", found.cut), ("no caption", found.uncaptioned), ("enlarged", found.enlarged),
        ("unreadable", [path for path, _ in found.unreadable]),
    ):  # fmt: skip
        if paths:
            lines.append((word, _several([path.name for path in paths])))
    lines += [("same bytes", _several([p.name for p in group])) for group in found.duplicates[:10]]
    if len(found.duplicates) > 10:
        lines.append(("", f"… and {len(found.duplicates) - 10} more such groups"))
    show.table(lines)


def _taken(memory: Any) -> str:
    if memory.rung is None:
        return ""
    phase = _PHASES.get(getattr(memory.needs, "largest", ""), "")
    when = f", while {phase}" if phase else ""
    return f" and {show.size(memory.rung.memory)} of memory{when}"


def _ladder(memory: Any) -> list[tuple[str, str]]:
    """Return the lines of what could be chosen, with memory of each; the chosen one is marked."""
    if not memory.ladder:
        return []
    lines = [("memory given" if memory.stated else "free memory", show.size(memory.given))]
    for index, rung in enumerate(memory.ladder):
        chosen = memory.rung is not None and rung.choice == memory.rung.choice
        saving = f"with {rung.saving}" if index else "without any saving"
        saving += " as well" if index > 1 else ""
        said = f"{show.size(rung.memory)} {saving}{'  ← this run' if chosen else ''}"
        lines.append(("needed memory" if not index else "", said))
    return lines


def _several(names: list[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" … and {more} more" if more > 0 else "")


def _time(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(seconds, 1):.0f} seconds"


command = verb_command(
    VERB, render, "loramerge train --base tiny --images pictures --trigger zuzu --dry-run"
)
