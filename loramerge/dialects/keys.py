"""A key taken apart: the dialect that spells it, its stem, and the role of its tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from loramerge.dialects import DIALECTS, Dialect
from loramerge.dialects.words import Words
from loramerge.families import FAMILIES
from loramerge.records import NamedTuple

__all__ = [
    "SHORT", "Ends", "Split", "any_names_an_adapter", "ends_of", "names_an_adapter", "split_key",
    "suffixes_of", "usual_end", "usual_start",
]  # fmt: skip

# Suffixes so short that only a known prefix makes them one, and that other suffixes end in.
_NEEDS_PREFIX = frozenset({".weight", ".bias"})
# Suffixes that belong to stems ending in `_lora` (XLabs: and a number) only.
SHORT = frozenset({".down.weight", ".up.weight"})
_SHORT_STEM = r"_lora\d?$"
_REPLACED = frozenset({"set_weight", "set_bias", "base_weight"})  # roles that need one, too
# Suffixes of mangled exports, which no dot sets apart from the stem.
_MANGLED = ("_lora_down.weight", "_lora_up.weight")
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


Suffixes = Mapping[str, tuple[tuple[str, str], ...]]


def suffixes_of(words: Words) -> Suffixes:
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


def usual_start(key: str) -> str:
    """Return a key with the usual beginning."""
    if key.startswith(_OFT[0]):
        return _OFT[1] + key[len(_OFT[0]) :]
    return re.sub(_WRAPPED, r"\1", key) if _WRAPPER in key else key


def usual_end(key: str) -> str:
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


class Split(NamedTuple):
    """A key taken apart; `head` is the known prefix its stem begins with, or ''."""

    dialect: str
    stem: str
    role: str
    head: str


def split_key(key: str, stem: str | None, head: str, words: Words) -> Split | None:
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
    known = suffixes_of(words)
    for position in reversed(starts):  # the longest suffix wins
        if key[position:] in known:
            found = _with_suffix(key[position:], key[:position], None, words)
            if found is not None:
                return found
    return None


class Ends(NamedTuple):
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


def ends_of(key: str, split: Split) -> Ends | None:
    """Return the ends of a key that was taken apart, None where more than these decided."""
    suffix = key[len(split.stem) :]
    usual = key.startswith(split.stem) and suffix.startswith(".") and not suffix.endswith(_MANGLED)
    short = suffix in SHORT or suffix in _NEEDS_PREFIX
    own = _own_heads(DIALECTS.version) - _marked_after(DIALECTS.version)
    if not usual or short or split.head not in own or _OFT[0].startswith(split.head):
        return None
    longer = tuple(one for one in own if one.startswith(split.head) and one != split.head)
    return Ends(split.head, suffix, longer)


def _with_suffix(suffix: str, stem: str, head: str | None, words: Words) -> Split | None:
    """Return the parts of a key, or None if no dialect has the suffix."""
    if suffix not in suffixes_of(words) or (suffix in SHORT and not re.search(_SHORT_STEM, stem)):
        return None
    if head is None:
        head = _head(stem)
    meaning = _meaning(suffix, head, words)
    return None if meaning is None else Split(meaning[0], stem, meaning[1], head)


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
    for name, role in suffixes_of(words)[suffix]:
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
