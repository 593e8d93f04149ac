"""Problems of an adapter's content, as reading finds them and `inspect` lists them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from loramerge.adapter.delta import Delta
from loramerge.adapter.info import Problem
from loramerge.adapter.site import Site
from loramerge.dialects import Dialect
from loramerge.dialects.detection import Detection
from loramerge.errors import LoramergeError, UnsupportedKind, sized, spelled
from loramerge.families import Family

__all__ = [
    "alpha_problems",
    "in_other_names",
    "missing_partner",
    "not_made",
    "of_no_known_name",
    "of_other_programs",
    "said_twice",
    "spelled_alike",
    "spelled_twice",
    "takes_too_much",
    "third_of_strength",
    "too_large",
    "without_configuration",
    "without_heads",
]

_EXPORT_AGAIN = "export or download the file again; it cannot be used as it is"


def not_made(error: LoramergeError, module: str) -> Problem:
    """Return the problem of tensors that do not make a delta."""
    says = error.problem if error.found is None else f"{error.problem}: {error.found}"
    if isinstance(error, UnsupportedKind):
        way = spelled(error.hint or "merge it with the program that made it")
        return Problem("error", "kind", module, says, way)
    return Problem("error", "shape", module, says, _EXPORT_AGAIN)


def missing_partner(module: str, roles: Set[str], peft_type: str | None = None) -> Problem:
    """Return the problem of tensors whose partners are missing.

    Args:
        peft_type: as a configuration states it.
    """
    says = f"{', '.join(sorted(roles))} without the tensors that belong to it"
    if peft_type:
        says += f" in a PEFT adapter of type {peft_type}"
    return Problem("error", "missing-partner", module, says, _EXPORT_AGAIN)


def in_other_names(detection: Detection) -> Problem:
    """Return the note about names that differ from a family's by dots and underscores."""
    return Problem(
        "note",
        "other-names",
        None,
        f"{len(detection.respelled)} modules have dots and underscores in other places than "
        f"{detection.name}, which no program reads",
        "convert writes them in the names that programs read",
    )


def of_no_known_name(module: str, family: Family) -> Problem:
    """Return the note about a module that the family does not know."""
    return Problem(
        "note",
        "unknown-module",
        module,
        f"{family.name} has no module of this name; it is kept under the same name",
        "no action needed, but it cannot be converted to another dialect",
    )


_MLX = (".lora_a", ".lora_b")


def of_other_programs(unknown: Sequence[str]) -> Iterator[Problem]:
    """Yield the problem of tensors of a program whose adapters are not read, by their names."""
    found = next((key for key in unknown if key.endswith(_MLX)), None)
    if found is not None:
        yield Problem(
            "error",
            "other-program",
            found.removesuffix(_MLX[0]).removesuffix(_MLX[1]),
            "an adapter of MLX-LM, whose factors are transposed, and whose scale is in its "
            "configuration",
            "save it as a PEFT adapter with the program that made it",
        )


def spelled_twice(module: str, one: str, other: str) -> Problem:
    """Return the problem of a module that occurs under two stems with different values."""
    says = f"the module occurs twice, as {one} and as {other}"
    return Problem("error", "spelled-twice", module, says, "remove one of the two spellings")


def said_twice(key: str, other: str) -> Problem:
    """Return the problem of a tensor that occurs under two keys with different values."""
    says = f"the tensor occurs twice with different values, as {other} and as {key}"
    return Problem("error", "spelled-twice", key, says, "remove one of the two")


def spelled_alike(module: str) -> Problem:
    """Return the warning about a module or tensor that occurs twice with equal values."""
    return Problem(
        "warning",
        "spelled-twice-alike",
        module,
        "the module is spelled twice with equal values; it is read and written once",
        "nothing needs to be done",
    )


def alpha_problems(deltas: Mapping[Site, Delta]) -> Iterator[Problem]:
    """Yield problems of alphas: zeros, then constraints of rotations, then infinite ones."""
    alphas = ((site, delta, delta.alpha) for site, delta in deltas.items())
    stated = [(site, delta, alpha) for site, delta, alpha in alphas if alpha is not None]
    odd = [one for one in stated if one[2] == 0 or not math.isfinite(one[2])]
    for site, delta, alpha in odd:
        if alpha == 0 and delta.pair is not None:
            yield Problem(
                "warning",
                "alpha-zero",
                site.name,
                "alpha is 0, which means no effect (kohya's trainer would read it as alpha = rank)",
                "if the module should have an effect, set alpha to its rank",
            )
    for site, delta, alpha in odd:
        if alpha == 0 and delta.facts.constrained:
            yield Problem(
                "note",
                "no-constraint",
                site.name,
                "alpha, the constraint of the rotation, is 0, which means no constraint, as in "
                "LyCORIS (kohya's oft would clamp the rotation to nothing)",
                "if it was trained with kohya's oft, it has no effect",
            )
    for site, _, alpha in odd:
        if not math.isfinite(alpha):
            says = "alpha is not a finite number"
            yield Problem("error", "alpha-not-finite", site.name, says, _EXPORT_AGAIN)


_MOST = 1 << 31  # elements of ΔW; the largest layers of known models have half as many


def takes_too_much(delta: Delta) -> bool:
    """Return whether the dense ΔW of small factors is too large for any memory."""
    return delta.facts.compact and math.prod(delta.shape) > _MOST


def too_large(deltas: Mapping[Site, Delta]) -> Iterator[Problem]:
    """Yield the error about modules whose small factors ask for more memory than there is."""
    for site, delta in deltas.items():
        if takes_too_much(delta):
            takes = sized(8 * math.prod(delta.shape))
            says = f"ΔW of {' × '.join(map(str, delta.shape))} would take {takes} of memory"
            yield Problem("error", "too-large", site.name, says, _EXPORT_AGAIN)


_SPLIT = r'(?i)"split_qkv":\s*"?true'
_SPLITTING = (  # sd-scripts' networks → what they train in parts, and by how much it is weaker
    ("lora_sd3", "a third"),
    ("lora_lumina", "a third"),
    ("lora_flux", "a third, and those with the single blocks' MLP at a fourth,"),
)


def third_of_strength(metadata: Mapping[str, str]) -> Iterator[Problem]:
    """Yield the note about attention that sd-scripts trained in three parts.

    Its `state_dict` stacks their factors to three times the rank and keeps the alpha of one, so that
    whoever reads the file, itself included, divides by the threefold rank.

    Source: `state_dict` in sd-scripts 48d368fa, `networks/lora_sd3.py`, `lora_lumina.py`, and
    `lora_flux.py`.
    """
    module = metadata.get("ss_network_module", "").rpartition(".")[2]
    part = dict(_SPLITTING).get(module)
    if part is not None and re.search(_SPLIT, metadata.get("ss_network_args", "")):
        yield Problem(
            "note",
            "third-of-strength",
            None,
            f"sd-scripts saved queries, keys and values that were trained apart (split_qkv) at {part} "
            "of their strength; loramerge reads them as saved, like other programs",
            "no action needed; another weight than in training may suit it",
        )


def without_heads(sites: Iterable[Site]) -> Iterator[Problem]:
    """Yield the note about queries and keys whose heads an adapter of llama.cpp does not tell."""
    from loramerge.adapter.opaque import in_order_of_llama_cpp

    count = sum(in_order_of_llama_cpp(site.modules[0]) for site in sites)
    if count:
        yield Problem(
            "note",
            "heads-unknown",
            None,
            f"the file does not tell the number of attention heads, so {count} modules keep the "
            "names and the order of rows of llama.cpp",
            "no action needed in llama.cpp, mix and bake; convert takes it from a base",
        )


def without_configuration(dialect: Dialect) -> Iterator[Problem]:
    """Yield the warning about a file whose dialect keeps alphas in a configuration that is not there."""
    if dialect.alpha == "config":
        yield Problem(
            "warning",
            "alpha-unknown",
            None,
            "PEFT keys without adapter_config.json: alpha is unknown and taken as the rank",
            "put adapter_config.json beside the file",
        )
