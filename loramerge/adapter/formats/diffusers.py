"""Files of diffusers: a configuration of every component in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.adapter.formats.container import Container, Unwritten
from loramerge.errors import CorruptFile
from loramerge.files.json_values import values_in

if TYPE_CHECKING:
    from loramerge.adapter.adapter import Adapter
    from loramerge.adapter.delta import Delta
    from loramerge.adapter.site import Site
    from loramerge.dialects import Dialect

__all__ = ["CONTAINER", "header_configurations"]

_CONFIG = "lora_adapter_metadata"


class _Diffusers(Container):
    def metadata(self, content: Unwritten, kept: Mapping[str, str]) -> dict[str, str]:
        found = _configuration(content.adapter, content.dialect, content.deltas)
        entries = {_CONFIG: json.dumps(found, sort_keys=True)} if found else {}
        return entries if "format" in kept else entries | {"format": "pt"}


CONTAINER = _Diffusers()


def _configuration(
    adapter: Adapter, target: Dialect, written: Mapping[Site, Delta]
) -> dict[str, Any]:
    """Return diffusers' `lora_adapter_metadata`: the configuration of every component, flattened.

    It says what PEFT's LoRA is to have, and so nothing of modules of other types. Ranks and alphas are
    stated for every module, so that files of mixed ranks load at the right strength also where a reader
    would guess one alpha for all.
    """
    from loramerge.adapter.alphas import keeps_alpha, of_each
    from loramerge.adapter.formats.peft_configuration import by_component, rank_patterns

    flat: dict[str, Any] = {}
    for component, whole in by_component(adapter, written, target.prefixes).items():
        deltas = {path: d for path, d in whole.items() if d.facts.peft_type == "LORA"}
        if not deltas:
            continue
        scaled = any(
            keeps_alpha(adapter, site, target)
            for site in of_each(adapter)
            if site.component == component
        )
        own = adapter.info.configs.get(component, {})
        config = own | rank_patterns(deltas, scaled=scaled, alpha="lora_alpha")
        config |= {"target_modules": sorted(deltas), "use_rslora": False, "peft_type": "LORA"}
        if any(delta.kind == "dora" for delta in deltas.values()):
            config["use_dora"] = True
        flat |= {f"{component}.{name}": value for name, value in config.items()}
    return flat


def header_configurations(metadata: Mapping[str, str], path: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations that diffusers wrote into a header, by component.

    SimpleTuner's files for ComfyUI have one, of no component; its own is the empty name, as in a folder.

    Raises:
        CorruptFile: if they cannot be read.
    """
    raw = metadata.get(_CONFIG)
    if raw is None:
        return {}
    try:
        flat = values_in(raw)
    except ValueError as error:
        raise CorruptFile(f"{_CONFIG} in the header is not JSON ({error})", file=path) from None
    if not isinstance(flat, dict):
        raise CorruptFile(f"{_CONFIG} in the header is not a JSON object", file=path)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, name = key.split(".", 1) if "." in key else ("", key)
        configs.setdefault(component, {})[name] = value
    return configs
