"""Sort the keys of a file by dialect, stem and role. Each key is classified separately, because
files mix dialects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field

from loramerge.dialects import DIALECTS
from loramerge.dialects.keys import (
    SHORT,
    Ends,
    ends_of,
    split_key,
    suffixes_of,
    usual_end,
    usual_start,
)
from loramerge.dialects.words import NO_WORDS, Words
from loramerge.families import FAMILIES
from loramerge.records import NamedTuple, record

__all__ = ["Classified", "Group", "classify"]

# Roles of ordinary LoRA and of differences: no suffix of a kind ends in theirs.
_PLAIN = frozenset({"up", "down", "alpha", "diff", "diff_b", "w_norm", "b_norm"})
# Textual-inversion embeddings that travel with an adapter: by their names, and by the header's value.
_EMBEDDED = ("<", "bundle_emb.")
_SAID_EMBEDDED = "<embed>"


class Group(NamedTuple):
    """The tensors of one module, as one dialect spells it: role → key."""

    dialect: str
    stem: str
    roles: dict[str, str]


@record
class Classified:
    """The keys of a file, sorted: groups, embeddings to carry, and keys of no known shape.

    Args:
        doubled: (key, the key before it that says the same role of the same stem).
    """

    groups: list[Group] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    doubled: list[tuple[str, str]] = field(default_factory=list)

    @property
    def needs_words(self) -> bool:
        """True if some key may belong to a kind other than ordinary LoRA."""
        return bool(self.unknown) or any(group.roles.keys() - _PLAIN for group in self.groups)


def classify(
    keys: Iterable[str], metadata: Mapping[str, str], words: Words = NO_WORDS
) -> Classified:
    """Sort keys into groups of one module each, in the order of the first key of each group.

    Args:
        words: how kinds other than ordinary LoRA are spelled. Without them `needs_words` of the
            result says whether they would change it.
    """
    result = Classified()
    groups: dict[tuple[str, str], Group] = {}
    embedded = {key for key, value in metadata.items() if value == _SAID_EMBEDDED}
    # of the key before, which most keys share: stem, its length and known prefix, dialect, and roles
    stem, end, head, dialect = None, 0, "", ""
    roles: dict[str, str] = {}
    versions = _versions()
    known: dict[str, dict[str, tuple[str, str]]] = {}  # head → suffix → (dialect, role)
    alike: dict[str, tuple[str, str]] = {}  # that of `head`
    ends: Ends | None = None  # of the key that began the group before
    suffixes = suffixes_of(words)
    for key in keys:
        if key.startswith(_EMBEDDED) or key in embedded:
            result.embeddings.append(key)
            continue
        if stem is not None and key.startswith(stem):  # most keys
            meaning = alike.get(key[end:])
            if meaning is not None:
                if meaning[0] == dialect and meaning[1] not in roles:
                    roles[meaning[1]] = key
                else:
                    dialect = meaning[0]
                    roles = _add(groups, result, dialect, stem, meaning[1], key)
                continue
        elif ends is not None and (other := ends.stem_of(key, suffixes)) is not None:
            (dialect, role), stem, end = alike[ends.suffix], other, len(other)
            roles = _add(groups, result, dialect, stem, role, key)
            continue
        usual = usual_start(key)
        split = split_key(usual, stem, head, words) or split_key(
            usual_end(usual), stem, head, words
        )
        if split is None and DIALECTS.look_for_others():
            split = split_key(usual, stem, head, words)
        if _versions() != versions:  # what others add may have the suffix, too
            known.clear()
            alike, ends = {}, None
            versions, suffixes = _versions(), suffixes_of(words)
        if split is None:
            result.unknown.append(key)
            continue
        dialect, stem, role, head = split
        end, alike = len(stem), known.setdefault(head, {})
        suffix = key[end:]
        if suffix not in SHORT and key.startswith(stem):
            alike[suffix] = (dialect, role)
            ends = ends_of(key, split)
        else:
            ends = None
        roles = _add(groups, result, dialect, stem, role, key)
    result.groups.extend(_joined(groups, words))
    return result


def _versions() -> tuple[int, int]:
    return DIALECTS.version, FAMILIES.version


def _add(
    groups: dict[tuple[str, str], Group],
    result: Classified,
    dialect: str,
    stem: str,
    role: str,
    key: str,
) -> dict[str, str]:
    """Add a key to its group, or to those that say the same role in two spellings.

    Returns:
        the roles of the group.
    """
    group = groups.get((dialect, stem))
    if group is None:
        group = groups[dialect, stem] = Group(dialect, stem, {})
    if role in group.roles:
        result.doubled.append((key, group.roles[role]))
    else:
        group.roles[role] = key
    return group.roles


def _joined(groups: Mapping[tuple[str, str], Group], words: Words) -> list[Group]:
    """Return the groups, those of one stem joined where one dialect has the roles of all.

    Without a known prefix each suffix alone names the first dialect that has it, and the suffixes of
    one module need not agree: kohya reads `.lora_A.weight`, but has no `.lora_magnitude_vector`.
    """
    if len({stem for _, stem in groups}) == len(groups):
        return list(groups.values())
    by_stem: dict[str, list[Group]] = {}
    for group in groups.values():
        by_stem.setdefault(group.stem, []).append(group)
    return [group for same in by_stem.values() for group in _join(same, words)]


def _join(same: list[Group], words: Words) -> list[Group]:
    """Join the groups of one stem, if some dialect has all their roles and none is there twice."""
    roles = [role for group in same for role in group.roles]
    if len(same) == 1 or len(roles) > len(set(roles)):
        return same
    speaks = next((d.name for d in DIALECTS.known() if d.roles(words) >= set(roles)), None)
    merged = {role: key for group in same for role, key in group.roles.items()}
    return same if speaks is None else [Group(speaks, same[0].stem, merged)]
