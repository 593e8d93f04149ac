"""demo: the main jobs, done on the tiny model and the adapters that come with loramerge."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from loramerge.errors import Message, OutputExists
from loramerge.events import Event, Finished, Note, Notify
from loramerge.library.shipped import SHIPPED_ADAPTERS, TINY
from loramerge.steps.loading import loading_torch
from loramerge.steps.parameters import Context, Doc, command_words
from loramerge.steps.references import references
from loramerge.verbs.bake import Bake, bake
from loramerge.verbs.inspect import Inspect, inspect
from loramerge.verbs.mix import Mix, mix
from loramerge.verbs.preview import Preview, preview
from loramerge.verbs.resize import ResizeFiles, resize_files
from loramerge.verbs.train.parameters import Train
from loramerge.verbs.train.run import train

__all__ = ["Demo", "DemoResult", "DemoStep", "demo"]

_RUNS: dict[str, Callable[[Any, Context], Any]] = {
    "mix": mix, "resize": resize_files, "bake": bake, "inspect": inspect, "preview": preview,
    "train": train,
}  # fmt: skip
_DRAWS = ("torch", "diffusers", "transformers", "PIL")  # what pictures need
_RANK = 4  # of the mix's 7 to 15: the pictures change a little
_STEPS = 300  # of training
_DRAWING: dict[str, Any] = {"steps": 12, "guidance": 2.0}  # what is enough for the tiny model
_PROMPTS = ("a happy zuzu on a purple background", "a small happy red cat on a green background")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Mix two adapters, re-rank the mix, bake it, and draw what each of these changes.

    Uses a tiny trained model that comes with loramerge; nothing is downloaded. Each command is
    shown as you would type it. If torch and diffusers are installed, the tour ends with an image.
    """

    folder: Annotated[
        str | None,
        Doc(
            "Folder to make [default: loramerge-demo; with --train loramerge-demo-train].",
            ("FOLDER",),
        ),
    ] = None
    train: Annotated[bool, Doc("Train an adapter on pictures instead, in about a minute.")] = False
    force: Annotated[bool, Doc("Use the folder although it exists.", ("--force", "-f"))] = False


@dataclass
class DemoStep:
    """One command of the tour and its result.

    Args:
        verb, parameters: of the command.
        result: None where it could not be done.
        missing: packages that are not installed, and without which it cannot be done.
        notes: what the verb noted, to be shown with its result.
    """

    title: str
    verb: str
    parameters: Any
    result: Any = None
    missing: tuple[str, ...] = ()
    notes: list[Message] = field(default_factory=list)

    @property
    def command(self) -> str:
        """The command as it is typed."""
        join = subprocess.list2cmdline if os.name == "nt" else shlex.join
        return join(command_words(self.verb, self.parameters))


@dataclass
class DemoResult:
    """The tour.

    Args:
        made: what was written before the first command: path → number of pictures.
        picture: the one to open.
        shows: what it shows.
        missing: packages that are not installed, and without which there is no picture.
    """

    folder: str
    steps: list[DemoStep]
    picture: str
    shows: str
    made: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        done = [(step, step.result.json()) for step in self.steps if step.result is not None]
        return {
            "outputs": [
                output
                for _, found in done
                if isinstance(found, dict)
                for output in found["outputs"]
            ],
            "steps": [
                {"title": step.title, "command": step.command, "result": found}
                for step, found in done
            ],
            "picture": None if self.missing else self.picture,
            "missing": list(self.missing),
        }


def demo(parameters: Demo, context: Context = Context()) -> DemoResult:
    """Run the verb; what was written first, and each step, is also an event `Finished`.

    Raises:
        OutputExists: if the folder exists and `force` is not set.
        MissingExtra: if there is no torch to train with.
    """
    usual = "loramerge-demo-train" if parameters.train else "loramerge-demo"
    folder = Path(parameters.folder or usual)
    if folder.exists() and not (parameters.force and folder.is_dir()):
        raise OutputExists(
            f"the {'folder' if folder.is_dir() else 'file'} exists",
            file=folder,
            hint="give another name" + (", or --force to use it" if folder.is_dir() else ""),
        )
    if parameters.train:
        context.notify(Note("training takes about a minute, and torch is loaded first"))
    with loading_torch(context.notify) if parameters.train else nullcontext():
        result = _training(folder) if parameters.train else _tour(folder)
    if result.made:
        context.notify(Finished("pictures", result.made))
    for step in result.steps:
        if step.verb == "preview" and result.missing:
            step.missing = result.missing
            context.notify(Finished(step.title, step))
            continue
        if step.verb == "preview":
            context.notify(
                Note(f"{_images(step.parameters)} images are drawn, which takes some seconds")
            )
        force = {"force": True} if parameters.force and hasattr(step.parameters, "force") else {}
        held = replace(context, notify=_holding(step.notes, context.notify))
        step.result = _RUNS[step.verb](replace(step.parameters, **force), held)
        context.notify(Finished(step.title, step))
    return result


def _images(parameters: Preview) -> int:
    """Return how many images a preview draws."""
    columns = len(parameters.base) + len(parameters.adapters) + len(parameters.baked)
    return columns * len(parameters.prompt) * len(parameters.seed)


def _holding(notes: list[Message], notify: Notify) -> Notify:
    """Return a function that keeps notes, which speak of a file that is not shown yet."""

    def told(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        else:
            notify(event)

    return told


def _tour(folder: Path) -> DemoResult:
    """Return the steps from two adapters to a checkpoint and a picture of it all."""
    mixed, small, baked, picture = (
        str(folder / name)
        for name in ("mix.safetensors", f"mix-r{_RANK}.safetensors", "baked", "pictures.png")
    )
    return DemoResult(
        str(folder),
        [
            DemoStep(
                "Two adapters of different rank and dialect, mixed exactly",
                "mix",
                Mix(adapters=references(*SHIPPED_ADAPTERS), to="kohya", output=mixed),
            ),
            DemoStep(
                "Re-ranked by SVD; the report says what that lost",
                "resize",
                ResizeFiles(files=(mixed,), rank=(_RANK,), output=small),
            ),
            DemoStep(
                "Baked into the base; every other tensor is byte-identical",
                "bake",
                Bake(base=TINY, lora=references(small), output=baked),
            ),
            DemoStep(
                "What is in the resized file, read with its weights",
                "inspect",
                Inspect(files=(small,), deep=True, base=TINY),
            ),
            DemoStep(
                "All of it drawn, each row from the same noise",
                "preview",
                Preview(
                    base=(TINY,),
                    adapters=references(*SHIPPED_ADAPTERS, mixed, small),
                    baked=(baked,),
                    prompt=_PROMPTS,
                    seed=(1, 2),
                    output=picture,
                    **_DRAWING,
                ),
            ),
        ],
        picture,
        f"base, each adapter, their mix, the mix at rank {_RANK}, and the checkpoint baked with that",
        missing=tuple(name for name in _DRAWS if find_spec(name) is None),
    )


def _training(folder: Path) -> DemoResult:
    """Write pictures to train on, and return the steps that do and show what came of it."""
    import loramerge.train  # noqa: F401 - says what to install where torch is missing
    from loramerge.tiny.folders import write_folders

    subject, regular = write_folders(folder / "pictures", force=True)
    learned, picture = str(folder / "learned.safetensors"), str(folder / "pictures.png")
    return DemoResult(
        str(folder),
        [
            DemoStep(
                "Trained on pictures of a character, beside others of what the base knows",
                "train",
                Train(
                    base=TINY,
                    images=str(subject),
                    regularisation=str(regular),
                    trigger="zuzu",
                    rank=8,
                    steps=_STEPS,
                    lr=3e-3,
                    batch=16,
                    prompt=_PROMPTS,
                    sample_every=_STEPS // 3,
                    sample_steps=_DRAWING["steps"],
                    guidance=_DRAWING["guidance"],
                    output=learned,
                ),
            ),
            DemoStep(
                "Drawn beside the base, each row from the same noise",
                "preview",
                Preview(
                    base=(TINY,),
                    adapters=references(learned),
                    prompt=_PROMPTS,
                    seed=(1, 2),
                    output=picture,
                    **_DRAWING,
                ),
            ),
        ],
        picture,
        "the base, which has never seen the character, and what it draws with the adapter",
        made={str(place): len(list(place.glob("*.png"))) for place in (subject, regular)},
    )
