"""Files of kohya: `ss_network_*` entries, the base's version, and hashes that identify a file."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import Delta
from loramerge.adapter.encoded import Encoded
from loramerge.adapter.formats.container import Check, Container, Unwritten
from loramerge.adapter.formats.kohya_hashes import HASH_PLACEHOLDERS, kohya_hashes
from loramerge.adapter.site import Site

__all__ = ["CONTAINER"]


class _Kohya(Container):
    def metadata(self, content: Unwritten, kept: Mapping[str, str]) -> dict[str, str]:
        return _network(content.adapter, content.deltas, content.alphas) | HASH_PLACEHOLDERS

    def write(self, encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
        tensors, metadata = encoded.tensors, dict(encoded.metadata)  # no cycle through `late`
        encoded.late.append(lambda: kohya_hashes(tensors, metadata))
        return super().write(encoded, place, force, check)


CONTAINER = _Kohya()


def _network(adapter: Adapter, deltas: Mapping[Site, Delta], alphas: Set[float]) -> dict[str, str]:
    """Return kohya's `ss_network_*` entries and base version for the deltas as written.

    Args:
        alphas: those that are written, the rank where none is.
    """
    cores = (delta.core for delta in deltas.values())
    ranks = {core.dim for core in cores if core is not None and core.dim is not None}
    if not ranks:
        return {}
    family = adapter.family
    plain = all(d.kind == "lora" for d in deltas.values() if d.core is not None)
    usual = family.metadata.network_module if family else "networks.lora"
    entries = {
        "ss_network_module": adapter.info.metadata.get(
            "ss_network_module", usual if plain else "lycoris.kohya"
        ),
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{next(iter(alphas)):g}" if len(alphas) == 1 else "Dynamic",
    }
    if family is not None and family.metadata.base_version is not None:
        entries["ss_base_model_version"] = adapter.info.metadata.get(
            "ss_base_model_version", family.metadata.base_version
        )
    if family is not None and family.metadata.v2 is not None:
        entries["ss_v2"] = str(family.metadata.v2)
    return entries
