"""Sort the keys of a file by dialect, stem and role. Each key is classified separately, because
files mix dialects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from functools import cache

from loramerge.dialects import DIALECTS, Dialect
from loramerge.dialects.words import NO_WORDS, Words
from loramerge.families import FAMILIES
from loramerge.records import NamedTuple, record

__all__ = ["Classified", "Group", "any_names_an_adapter", "classify", "names_an_adapter"]

# Suffixes so short that only a known prefix makes them one, and that other suffixes end in.
_NEEDS_PREFIX = frozenset({".weight", ".bias"})
# Suffixes that belong to stems ending in `_lora` (XLabs: and a number) only.
_SHORT = frozenset({".down.weight", ".up.weight"})
_SHORT_STEM = r"_lora\d?$"
_REPLACED = frozenset({"set_weight", "set_bias", "base_weight"})  # roles that need one, too
# Roles of ordinary LoRA and of differences: no suffix of a kind ends in theirs.
_PLAIN = frozenset({"up", "down", "alpha", "diff", "diff_b", "w_norm", "b_norm"})
# Suffixes of mangled exports, which no dot sets apart from the stem.
_MANGLED = ("_lora_down.weight", "_lora_up.weight")
# Textual-inversion embeddings that travel with an adapter: by their names, and by the header's value.
_EMBEDDED = ("<", "bundle_emb.")
_SAID_EMBEDDED = "<embed>"
_PARTS = 3  # no suffix has more
# Beginnings and ends that some programs write for the usual ones: kohya's OFT has a prefix of its
# own, SimpleTuner of 2024 kept PEFT's wrapper, PEFT puts an adapter's name into keys, others leave out
# the last word, and distilled adapters of Wan call the difference of a block's modulation `diff_m`.
_OFT = ("oft_unet_", "lora_unet_")
_WRAPPER = "base_model.model."
_WRAPPED = r"^((?:unet|transformer|text_encoder(?:_\d)?)\.)base_model\.model\."
_NAMED = r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.[^.]+(\.weight)?$"
_PLAIN_END = r"(?!(?:weight|bias)$)"
_WITH_NAME = (
    rf"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\.{_PLAIN_END}[^.]+(?:\.weight)?$"
)
_MODULATION = ".diff_m"
_CUT = r"\.lora_(?:A|B|down|up)$"


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


Suffixes = Mapping[str, tuple[tuple[str, str], ...]]


def _suffixes(words: Words) -> Suffixes:
    """Return suffix → (dialect, role) of every dialect that has it."""
    return _suffix_table(DIALECTS.version, words)


@cache
def _suffix_table(version: int, words: Words) -> Suffixes:
    table: dict[str, dict[tuple[str, str], None]] = {}
    for dialect in DIALECTS.known():
        for form in dialect.forms:
            for role, suffixes in form.spelled(words).items():
                for suffix in suffixes:
                    table.setdefault(suffix, {})[dialect.name, role] = None
    return {suffix: tuple(found) for suffix, found in table.items()}


def _usual_start(key: str) -> str:
    """Return a key with the usual beginning."""
    if key.startswith(_OFT[0]):
        return _OFT[1] + key[len(_OFT[0]) :]
    return re.sub(_WRAPPED, r"\1", key) if _WRAPPER in key else key


def _usual_end(key: str) -> str:
    """Return a key with the usual end."""
    if key.endswith(_MODULATION):
        return f"{key.removesuffix(_MODULATION)}.modulation.diff"
    return f"{key}.weight" if re.search(_CUT, key) else re.sub(_NAMED, r"\1\2", key)


def names_an_adapter(key: str) -> bool:
    """Return whether a key holds an adapter's own name, as in models that PEFT has in memory.

    Files do not have it: PEFT leaves the name out when it saves, and puts one in when it loads.
    """
    return re.search(_WITH_NAME, key) is not None


def any_names_an_adapter(keys: Sequence[str]) -> bool:
    """Return whether any of the keys does; where none does, one search in all of them tells."""
    text = "\n".join(keys)
    lines = text.count("\n") < len(keys)  # no key has several
    if lines and re.search(_WITH_NAME, text, re.MULTILINE) is None:
        return False
    return any(map(names_an_adapter, keys))


class _Split(NamedTuple):
    """A key taken apart; `head` is the known prefix its stem begins with, or ''."""

    dialect: str
    stem: str
    role: str
    head: str


def _split(key: str, stem: str | None, head: str, words: Words) -> _Split | None:
    """Take a key apart, or return None.

    Args:
        stem: that of the key before this one, which most keys share; `head`: its known prefix.
    """
    if stem is not None and key.startswith(stem):
        found = _with_suffix(key[len(stem) :], stem, head, words)
        if found is not None:
            return found
    if key.endswith(_MANGLED):
        start = key.rfind("_lora_")
        return _with_suffix(key[start:], key[:start], None, words)
    position = len(key)
    starts: list[int] = []
    colons = ":" in key
    for _ in range(_PARTS):
        dot = key.rfind(".", 0, position)
        position = max(dot, key.rfind(":", 0, position)) if colons else dot
        if position < 0:
            break
        starts.append(position)
    known = _suffixes(words)
    for position in reversed(starts):  # the longest suffix wins
        if key[position:] in known:
            found = _with_suffix(key[position:], key[:position], None, words)
            if found is not None:
                return found
    return None


class _Ends(NamedTuple):
    """The known prefix and the suffix of a key that begins a group, which most such keys share."""

    head: str
    suffix: str
    longer: tuple[str, ...]  # known prefixes that begin with `head`

    def stem_of(self, key: str, known: Suffixes) -> str | None:
        """Return the stem of a key that is taken apart at the same ends, None if it may not be.

        The longest prefix and the longest suffix win, so that no longer one may be known.
        """
        if not key.endswith(self.suffix):
            return None
        stem = key[: -len(self.suffix)]
        if not stem.startswith(self.head) or stem.startswith(self.longer):
            return None
        if ":" in key or _WRAPPER in key:
            return None
        position = len(stem)
        for _ in range(_PARTS - self.suffix.count(".")):
            position = stem.rfind(".", 0, position)
            if position < 0:
                break
            if key[position:] in known:
                return None
        return stem


def _ends_of(key: str, split: _Split) -> _Ends | None:
    """Return the ends of a key that was taken apart, None where more than these decided."""
    suffix = key[len(split.stem) :]
    usual = key.startswith(split.stem) and suffix.startswith(".") and not suffix.endswith(_MANGLED)
    short = suffix in _SHORT or suffix in _NEEDS_PREFIX
    own = _own_heads(DIALECTS.version) - _marked_after(DIALECTS.version)
    if not usual or short or split.head not in own or _OFT[0].startswith(split.head):
        return None
    longer = tuple(one for one in own if one.startswith(split.head) and one != split.head)
    return _Ends(split.head, suffix, longer)


def _with_suffix(suffix: str, stem: str, head: str | None, words: Words) -> _Split | None:
    """Return the parts of a key, or None if no dialect has the suffix."""
    if suffix not in _suffixes(words) or (suffix in _SHORT and not re.search(_SHORT_STEM, stem)):
        return None
    if head is None:
        head = _head(stem)
    meaning = _meaning(suffix, head, words)
    return None if meaning is None else _Split(meaning[0], stem, meaning[1], head)


def _head(stem: str) -> str:
    """Return the longest prefix some dialect knows that a stem begins with, or ''.

    Names of families identify a dialect, too, where its own prefixes leave room for them. Families are
    imported, and what other packages add is looked for, only then.
    """
    head = _longest(_heads(DIALECTS.version), stem)
    if head not in _marked_after(DIALECTS.version):
        return head
    head = _longest(_family_heads(DIALECTS.version, FAMILIES.version), stem, whole=True) or head
    others = not head and (DIALECTS.look_for_others() | FAMILIES.look_for_others())
    return _head(stem) if others else head


def _longest(heads: Mapping[str, list[str]], stem: str, *, whole: bool = False) -> str:
    """Return the longest of the prefixes that a stem begins with, or ''.

    Args:
        whole: the level of the name that a prefix ends in has to end there: `first` does not begin
            `first_stage_model`.
    """
    for head in heads.get(stem[:1], ()):
        if stem.startswith(head) and (
            not whole or head[-1] in "._" or stem[len(head) : len(head) + 1] in ("", ".")
        ):
            return head
    return ""


def _by_letter(known: Iterable[str]) -> Mapping[str, list[str]]:
    """Return first letter → prefixes, the longest first."""
    table: dict[str, list[str]] = {}
    for prefix in sorted(set(known), key=len, reverse=True):
        table.setdefault(prefix[:1], []).append(prefix)
    return table


@cache
def _heads(version: int) -> Mapping[str, list[str]]:
    return _by_letter(prefix for dialect in DIALECTS.known() for prefix in dialect.heads)


@cache
def _marked_after(version: int) -> frozenset[str]:
    return frozenset({"", *(head for dialect in DIALECTS.known() for head in dialect.marked_after)})


@cache
def _family_heads(dialects: int, families: int) -> Mapping[str, list[str]]:
    marked = [dialect for dialect in DIALECTS.known() if dialect.marked_after]
    return _by_letter(head for dialect in marked for head in _heads_of(dialect, families))


@cache
def _heads_of(dialect: Dialect, families: int) -> frozenset[str]:
    """Return the beginnings of stems by which the names of families identify a dialect."""
    return frozenset(head for family in FAMILIES.known() for head in dialect.heads_of(family))


def _meaning(suffix: str, head: str, words: Words) -> tuple[str, str] | None:
    return _meaning_of(suffix, head, words, DIALECTS.version, FAMILIES.version)


@cache
def _meaning_of(
    suffix: str, head: str, words: Words, dialects: int, families: int
) -> tuple[str, str] | None:
    """Return (dialect, role) of a suffix after a stem that begins with the known prefix `head`.

    Of the dialects that have the suffix, the one with the longest prefix is meant; without a prefix
    the first, unless suffix or role needs one.
    """
    best: tuple[int, str, str] | None = None
    of_family = head not in _own_heads(dialects)
    for name, role in _suffixes(words)[suffix]:
        dialect = DIALECTS[name]
        heads: Iterable[str] = dialect.heads
        if of_family and dialect.marked_after:
            heads = (*heads, *_heads_of(dialect, families))
        length = max((len(p) for p in heads if head.startswith(p)), default=-1)
        if length < 0 and (suffix in _NEEDS_PREFIX or role in _REPLACED):
            continue
        if best is None or length > best[0]:
            best = (length, name, role)
    return None if best is None else (best[1], best[2])


@cache
def _own_heads(version: int) -> frozenset[str]:
    return frozenset({"", *(head for d in DIALECTS.known() for head in d.heads)})


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
    ends: _Ends | None = None  # of the key that began the group before
    suffixes = _suffixes(words)
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
        usual = _usual_start(key)
        split = _split(usual, stem, head, words) or _split(_usual_end(usual), stem, head, words)
        if split is None and DIALECTS.look_for_others():
            split = _split(usual, stem, head, words)
        if _versions() != versions:  # what others add may have the suffix, too
            known.clear()
            alike, ends = {}, None
            versions, suffixes = _versions(), _suffixes(words)
        if split is None:
            result.unknown.append(key)
            continue
        dialect, stem, role, head = split
        end, alike = len(stem), known.setdefault(head, {})
        suffix = key[end:]
        if suffix not in _SHORT and key.startswith(stem):
            alike[suffix] = (dialect, role)
            ends = _ends_of(key, split)
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
