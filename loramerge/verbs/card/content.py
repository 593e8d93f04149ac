"""The content of a model card: what the header, the files beside an adapter, and its recipe tell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.errors import sized
from loramerge.families import FAMILIES
from loramerge.library.paths import bare
from loramerge.library.sidecars import sidecar_facts
from loramerge.report.card import LICENSES, CardContent
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import recipe_in
from loramerge.verbs.inspect import Inspect, Inspected, inspect_adapter

__all__ = ["EXPECTED", "card_content"]

_TRAINING = {
    "ss_sd_model_name": "base checkpoint", "ss_base_model_version": "kind of base",
    "ss_num_train_images": "images", "ss_resolution": "resolution", "ss_num_epochs": "epochs",
    "ss_steps": "steps", "ss_learning_rate": "learning rate", "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule", "ss_training_comment": "comment",
}  # fmt: skip
EXPECTED = ("library_name", "base_model", "license", "pipeline_tag", "instance_prompt")


def card_content(
    adapter: Adapter,
    path: Path,
    pictures: Sequence[str],
    *,
    base_model: str | None,
    license: str | None,
    context: Context,
) -> CardContent:
    """Return what is known of an adapter.

    Args:
        path: its file or folder.
        pictures: paths from the card on.
        base_model, license: as they were given; None is what the file tells.
    """
    found = inspect_adapter(adapter, Inspect(files=(), hash=True), context)
    metadata, beside = found.metadata, sidecar_facts(path)
    family = FAMILIES.get(found.family or "")
    task = None if family is None else family.task
    base = base_model or _base_of(adapter)
    words = found.trigger_words or list(beside.trigger_words)
    header: dict[str, Any] = {
        "library_name": _library(found, adapter),
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        **_license(license or metadata.get("modelspec.license", "")),
        "pipeline_tag": task,
        "tags": list(dict.fromkeys((*_tags(found, task), *beside.tags))),
        "instance_prompt": ", ".join(words),
        "widget": [{"text": "-", "url": one} for one in pictures],
    }
    facts = _facts(found, None if family is None else family.title)
    facts["made for"] = beside.base or ""
    facts["usual weight"] = "" if beside.weight is None else f"{beside.weight:g}"
    return CardContent(
        title=metadata.get("modelspec.title") or beside.title or bare(path.name),
        file=path.name,
        header=header,
        description=metadata.get("modelspec.description") or beside.description or "",
        pictures=pictures,
        words=words,
        base=base or ("" if family is None else family.title),
        uses=list(_uses(found, path, base, header["library_name"])),
        facts=facts,
        training={label: metadata[key] for key, label in _TRAINING.items() if metadata.get(key)},
        recipe=recipe_in(metadata),
        command=f"loramerge run {path.name}",
    )


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
