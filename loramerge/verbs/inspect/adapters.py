"""The facts about one adapter, from its header and alphas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from loramerge.adapter import Adapter, Problem
from loramerge.adapter.metadata import RECIPE_KEY, tags, trained_on, trigger_words
from loramerge.adapter.networks import network_of
from loramerge.adapter.readers import Reading, readings
from loramerge.dialects import DIALECTS
from loramerge.errors import listed
from loramerge.files.dtypes import DTYPES
from loramerge.steps.parameters import Context
from loramerge.verbs.inspect.facts import Inspect, Inspected

__all__ = ["inspect_adapter"]

_NOTHING_KNOWN = Problem(
    "error",
    "nothing-known",
    None,
    "no tensor of the file belongs to an adapter or a checkpoint of a known kind",
    "`loramerge dialects` and `loramerge families` list the formats and models that can be read",
)


def inspect_adapter(
    adapter: Adapter,
    parameters: Inspect = Inspect(files=()),
    context: Context = Context(),
) -> Inspected:
    """Inspect a loaded adapter; see `inspect`."""
    info = adapter.info
    seen = list(readings(adapter))
    account = info.account
    found = Inspected(
        path=adapter.label,
        size=info.size,
        what=_what(adapter),
        dialect=info.translated or " + ".join(_told(adapter)) or ("peft" if info.configs else None),
        family=info.detection.name,
        family_reason=info.detection.reason,
        trained_on=trained_on(info.metadata),
        kinds=adapter.kinds(),
        modules=len(adapter.deltas),
        components=adapter.components(),
        ranks=adapter.ranks(),
        alphas=adapter.alphas(),
        dtypes={DTYPES[name].word: n for name, n in adapter.dtypes().items()},
        embeddings=sorted(adapter.embeddings),
        unknown_keys=list(account.unknown),
        nearest_keys={key: near for key, near in account.unknown.items() if near},
        tags=tags(info.metadata),
        trigger_words=trigger_words(info.metadata),
        loads_in=[found.program.title for found in seen if found.whole],
        loads_otherwise={
            found.program.title: found.words(len(adapter.deltas))
            for found in seen
            if not found.whole
        },
        metadata=dict(sorted(info.metadata.items())),
        findings=list(info.problems),
    )
    found.findings += _of_one_network(adapter)
    found.findings += _computed_otherwise(adapter, seen)
    if RECIPE_KEY in info.metadata:
        from loramerge.steps.contents import contents_of

        found.merged = contents_of(info.metadata)
    if parameters.hash and info.path is not None:
        found.hashes = _hashes(adapter)
    if not adapter.deltas and not adapter.embeddings and not info.problems:
        found.findings.append(_NOTHING_KNOWN)
    wanted = (parameters.deep, parameters.modules, parameters.spectrum, parameters.check)
    if any(wanted) or parameters.base is not None or context.details:
        from loramerge.verbs.inspect.weights import add_base, add_strength, add_weights

        add_weights(found, adapter, parameters, context)
        if parameters.base is not None:
            add_base(found, adapter, parameters.base, seen, context)
        add_strength(found)
    return found


def _what(adapter: Adapter) -> str:
    """Return what a file is; a configuration names an adapter also where no module can be made."""
    if adapter.deltas or (adapter.info.configs and not adapter.embeddings):
        return "adapter"
    return "embeddings" if adapter.embeddings else "unknown"


def _told(adapter: Adapter) -> list[str]:
    """Return the dialects of an adapter, without those that only the ends of its keys suggest.

    Any program may end keys with `.lora_A`; of a model of no known family only a prefix tells whose they
    are.
    """
    info = adapter.info
    if info.detection.naming is not None or not info.stems:
        return list(info.dialects)
    return [
        name
        for name in info.dialects
        if not DIALECTS[name].heads
        or any(
            by.get(name, "").startswith(tuple(DIALECTS[name].heads)) for by in info.stems.values()
        )
    ]


def _of_one_network(adapter: Adapter) -> Iterator[Problem]:
    """Yield a note on an adapter whose name says which of a pipeline's two networks it is for."""
    if said := network_of(adapter):
        yield Problem(
            "note",
            "one-network",
            None,
            f"its name says that it is for {said}; its keys do not say it",
            "mix it with the file of the other network for an adapter of both",
        )


def _computed_otherwise(adapter: Adapter, seen: Sequence[Reading]) -> Iterator[Problem]:
    """Yield a problem for programs that compute a different change, with the advice that gives the
    trained one in all of them."""
    titles = [found.program.title for found in seen if found.mistakes_kinds]
    if titles:
        bound = any(delta.needs_base for delta in adapter.deltas.values())
        yield Problem(
            "note",
            "computed-otherwise",
            None,
            f"{listed(titles)} {'computes' if len(titles) == 1 else 'compute'} a different "
            "change from the trained one",
            f"loramerge convert --to-lora{' --base B' if bound else ''} gives the trained change",
        )


def _hashes(adapter: Adapter) -> dict[str, str]:
    """Return the digests by which people and sites name a file."""
    from loramerge.adapter.source import open_source
    from loramerge.files.digest import sha256_of_file_and_data, tensors_sha256
    from loramerge.library.digests import digest_of, digest_of_files

    assert adapter.info.path is not None
    path = Path(adapter.info.path)
    source = open_source(path)
    whole = (
        digest_of(source.files[0])
        if len(source.files) == 1
        else digest_of_files(path if path.is_dir() else path.parent, source.files)
    )
    one = source.files[0] if len(source.files) == 1 else None
    data = sha256_of_file_and_data(one)[1] if one and one.suffix == ".safetensors" else None
    return {
        "sha256": whole,
        "autov2": whole[:10],
        **({"autov3": data[:12]} if data else {}),
        "tensors_sha256": tensors_sha256(source.tensors),
    }
