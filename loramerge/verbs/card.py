"""card: a model card for hubs, a README.md, from what is known about an adapter."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.errors import MissingFile, Setting, UsageError, sized
from loramerge.events import Note
from loramerge.families import FAMILIES
from loramerge.files.atomic import check_target
from loramerge.files.writer import write_bytes
from loramerge.library.lookup import bare, below, find
from loramerge.library.shipped import is_shipped
from loramerge.steps.inputs import read_adapter
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction
from loramerge.steps.provenance import recipe_in
from loramerge.steps.shown import Shown
from loramerge.verbs.inspect import Inspect, Inspected, inspect_adapter

__all__ = ["VERB", "Card", "CardResult", "card"]

_PREVIEWS = (".png", ".preview.png", ".jpg", ".jpeg", ".webp", ".preview.webp", ".preview.jpg")
_TRAINING = {
    "ss_sd_model_name": "base checkpoint", "ss_base_model_version": "kind of base",
    "ss_num_train_images": "images", "ss_resolution": "resolution", "ss_num_epochs": "epochs",
    "ss_steps": "steps", "ss_learning_rate": "learning rate", "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule", "ss_training_comment": "comment",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Card:
    """Write a model card for hubs: a README.md with the fields they expect.

    What the file's header, the files beside it and its recipe tell is written, and nothing is
    guessed: a field that is not known is left out, and named.
    """

    file: Annotated[
        str, Doc("Adapter file, PEFT folder, or name.", ("FILE",), completes="adapters")
    ]
    base_model: Annotated[
        str | None,
        Doc(
            "Name of the base on the hub, as OWNER/NAME [default: what the configuration of a PEFT "
            "folder names].",
            metavar="NAME",
        ),
    ] = None
    license: Annotated[
        str | None,
        Doc("License [default: that of the file's metadata].", metavar="NAME"),
    ] = None
    picture: Annotated[
        tuple[str, ...],
        Doc(
            "Picture in the card's folder, or below; may be repeated [default: those beside FILE "
            "with its name].",
            metavar="FILE",
        ),
    ] = ()
    output: Annotated[
        str | None,
        Doc("Output path [default: README.md beside FILE].", ("--output", "-o"), "FILE",
            recipe=False),
    ] = None  # fmt: skip
    force: Annotated[bool, Doc("Replace an existing output.", ("--force", "-f"), recipe=False)] = (
        False
    )


@dataclass(repr=False)
class CardResult(Shown):
    """The card that was written.

    Args:
        header: its fields for hubs.
        missing: fields that hubs expect and that are not known.
    """

    headline = ("output", "missing")

    output: str
    path: str
    header: dict[str, Any]
    missing: list[str]

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [self.output],
            "path": self.path,
            "header": self.header,
            "missing": self.missing,
        }


def card(parameters: Card, context: Context = Context()) -> CardResult:
    """Write the card.

    Raises:
        UsageError: for a name that is that of an adapter in memory, or a picture elsewhere.
        OutputExists: unless `force`.
    """
    from loramerge.report.card import card_text

    path = _path(parameters, context)
    target = _default(path) if parameters.output is None else Path(parameters.output)
    check_target(target, force=parameters.force)
    adapter = read_adapter(path)
    pictures = _pictures(parameters, path, target, context)
    content = _content(parameters, adapter, path, pictures, context)
    missing = [name for name in _EXPECTED if not content.header[name]]
    write_bytes(target, card_text(content).encode("utf-8", "replace"), force=parameters.force)
    if missing:
        options = [Setting(name) for name in missing if name in ("base_model", "license")]
        advice = ["; give ", *_joined(options)] if options else []
        context.notify(Note((f"left out, as not known: {', '.join(missing)}", *advice)))
    header = {name: value for name, value in content.header.items() if value}
    return CardResult(str(target), str(path), header, missing)


def _joined(options: Sequence[Setting]) -> Iterator[str | Setting]:
    for number, one in enumerate(options):
        yield from ((" or ", one) if number else (one,))


def predict(parameters: Card, context: Context = Context()) -> Prediction:
    """Predict what reading the header takes."""
    known = context.known.get(parameters.file)  # of a step that is to come, its shapes
    adapter = known if isinstance(known, Adapter) else read_adapter(_path(parameters, context))
    return Prediction(modules=len(adapter.deltas))


VERB = Verb("card", Card, "document", card, predict)


def _path(parameters: Card, context: Context) -> Path:
    """Return the file that is described.

    Raises:
        UsageError: if the name is that of an adapter in memory.
    """
    known = context.known.get(parameters.file)
    if isinstance(known, Adapter):
        raise UsageError(
            f"{parameters.file!r} is in memory, and a card describes a file",
            hint="add save: FILE to the step that makes it",
        )
    return known if known is not None else find(parameters.file, "adapters", root=context.root)


def _default(path: Path) -> Path:
    """Return the card's place beside a file, in a folder, or here for what comes with loramerge."""
    if is_shipped(path):
        return Path("README.md")
    return (path if path.is_dir() else path.parent) / "README.md"


def _pictures(parameters: Card, path: Path, target: Path, context: Context) -> list[str]:
    """Return the pictures as paths from the card.

    Raises:
        MissingFile: if one is not there.
        UsageError: if one is not in the card's folder, or below.
    """
    folder = target.parent
    if not parameters.picture:
        stem = path / path.name if path.is_dir() else path.with_suffix("")
        beside = [stem.with_name(stem.name + suffix) for suffix in _PREVIEWS]
        given = [one for one in beside if one.is_file() and _from(one, folder) is not None]
    else:
        given = [below(context.root, one) for one in parameters.picture]
    found = []
    for picture in given:
        if not picture.is_file():
            raise MissingFile("no such picture", file=picture)
        relative = _from(picture, folder)
        if relative is None:
            raise UsageError(
                "a picture of a card must be in the card's folder, or below",
                file=picture,
                expected=f"a file in {folder}",
                hint="copy it there",
            )
        found.append(relative)
    return found


def _from(path: Path, folder: Path) -> str | None:
    """Return a path from a folder on, None if it is not below it."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return None


# ---- what is known ------------------------------------------------------------------------------

_EXPECTED = ("library_name", "base_model", "license", "pipeline_tag", "instance_prompt")


def _content(
    parameters: Card, adapter: Adapter, path: Path, pictures: Sequence[str], context: Context
) -> Any:
    from loramerge.report.card import CardContent

    found = inspect_adapter(adapter, Inspect(files=(), hash=True), context)
    metadata = found.metadata
    family = FAMILIES.get(found.family or "")
    base = parameters.base_model or _base_of(adapter)
    header: dict[str, Any] = {
        "library_name": _library(found, adapter),
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        **_license(parameters.license or metadata.get("modelspec.license", "")),
        "pipeline_tag": None if family is None else family.task,
        "tags": _tags(found, None if family is None else family.task),
        "instance_prompt": ", ".join(found.trigger_words),
        "widget": [{"text": "-", "url": one} for one in pictures],
    }
    return CardContent(
        title=metadata.get("modelspec.title") or bare(path.name),
        file=path.name,
        header=header,
        description=metadata.get("modelspec.description", ""),
        pictures=pictures,
        words=found.trigger_words,
        base=base or ("" if family is None else f"one of {family.title}"),
        uses=list(_uses(found, path, base, header["library_name"])),
        facts=_facts(found, None if family is None else family.title),
        training={label: metadata.get(key, "") for key, label in _TRAINING.items()
                  if metadata.get(key)},
        recipe=recipe_in(metadata),
        command=f"loramerge run {path.name}",
    )  # fmt: skip


def _base_of(adapter: Adapter) -> str | None:
    """Return the base that a PEFT configuration names, if it is a name on a hub and no path."""
    for config in adapter.info.configs.values():
        name = config.get("base_model_name_or_path")
        if isinstance(name, str) and re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name, re.ASCII):
            return name
    return None


def _library(found: Inspected, adapter: Adapter) -> str | None:
    if "diffusers" in found.loads_in:
        return "diffusers"
    return "peft" if adapter.info.configs else None


def _license(text: str) -> dict[str, str | None]:
    """Return the fields of a license: an identifier that hubs know, or the name of another."""
    from loramerge.report.card import LICENSES

    text = text.strip()
    known = {_letters(name): name for name in LICENSES}
    if not text or _letters(text) in known:
        return {"license": known.get(_letters(text))}
    address = re.search(r"https?://\S+", text)
    if address is not None:
        return {"license": "other", "license_link": address[0]}
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    return {"license": "other", "license_name": name or None}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9+.]", "", text.lower())


def _tags(found: Inspected, task: str | None) -> list[str]:
    architecture = found.metadata.get("modelspec.architecture", "").split("/")[0]
    own = (word.strip() for word in found.metadata.get("modelspec.tags", "").split(","))
    given = (
        task,
        *(kind.removeprefix("peft-") for kind in found.kinds),
        found.family,
        architecture,
    )
    return list(dict.fromkeys(word for word in (*given, *own) if word))


def _facts(found: Inspected, family: str | None) -> dict[str, str]:
    hashes = found.hashes or {}
    counted = {f"{alpha:g}": n for alpha, n in found.alphas.items()}
    return {
        "model": family or "of no family that loramerge knows",
        "modules": ", ".join(f"{n} in {name}" for name, n in found.components.items()),
        "kind": ", ".join(found.kinds),
        "rank": _counts(found.ranks),
        "alpha": _counts(counted) or "not stored, so alpha = rank",
        "type of numbers": ", ".join(found.dtypes),
        "format": found.dialect or "",
        "size": "" if found.size is None else sized(found.size),
        "SHA-256": hashes.get("sha256", ""),
        "AutoV2": hashes.get("autov2", "").upper(),
    }


def _counts(counts: Mapping[Any, int]) -> str:
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{value} in {n}" for value, n in counts.items())


def _uses(
    found: Inspected, path: Path, base: str | None, library: str | None
) -> Iterator[tuple[str, str, str]]:
    """Yield how programs load the file, those that are known to."""
    name = json.dumps(path.name, ensure_ascii=False)
    model = json.dumps(base or "BASE")
    if library == "diffusers":
        weights = "" if path.is_dir() else f", weight_name={name}"
        yield "diffusers", "python", _DIFFUSERS.format(model=model, weights=weights)
    elif library == "peft":
        yield "PEFT", "python", _PEFT
    for program in found.loads_in:
        if program in _PLACES:
            yield (program, "text", _PLACES[program].format(name=path.name, stem=path.stem))
    if found.family is not None:
        quoted = shlex.quote(path.name)
        yield ("loramerge", "console", f"$ loramerge bake --base BASE {quoted}")


_DIFFUSERS = """from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({model})
pipe.load_lora_weights("."{weights})"""
_PEFT = """from peft import AutoPeftModel

model = AutoPeftModel.from_pretrained(".")"""
_PLACES = {
    "ComfyUI": "models/loras/{name}: choose it in the node Load LoRA",
    "A1111": "models/Lora/{name}: <lora:{stem}:1>",
    "Forge": "models/Lora/{name}: <lora:{stem}:1>",
}
