"""Captions as training reads them: a pure function of the seed and the example's number."""

from __future__ import annotations

import random
import re
import unicodedata
from dataclasses import dataclass
from functools import cache

from loramerge.errors import UsageError
from loramerge.train.dataset.scan import Picture
from loramerge.train.spec.seeds import seed_of

__all__ = ["Captioning", "words_pattern"]

_PLACE = "[trigger]"


@dataclass(frozen=True)
class Captioning:
    """The changes made to captions: trigger words, shuffled tags, dropout.

    Args:
        trigger: words that call the subject. They replace `[trigger]`, or are put in front of a
            caption that lacks them as whole words. An image without a caption gets them alone.
        shuffle_tags: shuffle the tags of a caption (its parts between commas) each time.
        keep_tokens: tags at the front that are never shuffled or dropped; None: none. The trigger's
            tags never are.
        tag_dropout: probability of dropping each of the other tags.
        caption_dropout: probability of an empty caption, which classifier-free guidance needs.
    """

    trigger: str | None = None
    shuffle_tags: bool = False
    keep_tokens: int | None = None
    tag_dropout: float = 0.0
    caption_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tag_dropout", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"{name} is not a probability", expected="0 to 1", found=getattr(self, name)
                )

    @property
    def varies(self) -> bool:
        """True if an image can have several captions, the empty one apart."""
        return self.shuffle_tags or self.tag_dropout > 0

    def whole(self, picture: Picture) -> str:
        """Return an image's caption with the trigger, before shuffling and dropout."""
        text = picture.caption or ""
        trigger = None if picture.regular else self.trigger
        if trigger is None:
            return text.replace(_PLACE, "").strip()
        if _PLACE in text:
            return text.replace(_PLACE, trigger)
        if words_pattern(trigger).search(text):
            return text
        return f"{trigger}, {text}" if text else trigger

    def drawn(self, picture: Picture, number: int) -> str:
        """Return the caption of one example; `number` counts the examples of the whole run."""
        text = self.whole(picture)
        if not (self.varies or self.caption_dropout):
            return text
        draw = random.Random(seed_of(self.seed, "caption", number))
        if draw.random() < self.caption_dropout:
            return ""
        if not self.varies:
            return text
        tags = [tag for part in text.split(",") if (tag := part.strip())]
        kept = self._kept(tags, picture)
        if self.shuffle_tags:  # what is kept stands in front
            rest = [place for place in range(len(tags)) if place not in kept]
            draw.shuffle(rest)
            order = [*sorted(kept), *rest]
        else:
            order = list(range(len(tags)))
        shown = (n for n in order if n in kept or draw.random() >= self.tag_dropout)
        return ", ".join(tags[place] for place in shown)

    def _kept(self, tags: list[str], picture: Picture) -> set[int]:
        """Return the places of the tags that are never dropped: those asked for, and the trigger's."""
        kept = set(range(min(self.keep_tokens or 0, len(tags))))
        if self.trigger is None or picture.regular:
            return kept
        pattern, many = words_pattern(self.trigger), self.trigger.count(",") + 1
        for place in range(len(tags) - many + 1):
            if pattern.search(", ".join(tags[place : place + many])):
                kept |= set(range(place, place + many))
        return kept


@cache
def words_pattern(words: str) -> re.Pattern[str]:
    """Return a pattern that finds words as whole words, in any case: "sam" is not in "same".

    Scripts without spaces between words have no such bounds, so there the text alone counts.
    """
    text = r"\s*,\s*".join(re.escape(" ".join(part.split())) for part in words.split(","))
    before = r"(?<!\w)" if _spaced(words.strip()[:1]) else ""
    after = r"(?!\w)" if _spaced(words.strip()[-1:]) else ""
    return re.compile(f"{before}{text}{after}", re.IGNORECASE)


_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def _spaced(letter: str) -> bool:
    """Return whether a letter belongs to a script that has spaces between words."""
    return letter.isalnum() and not unicodedata.name(letter, "").startswith(_UNSPACED)
