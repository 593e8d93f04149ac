"""Captions as training reads them: a pure function of the seed and the example's number."""

from __future__ import annotations

import random
from dataclasses import dataclass

from loramerge.errors import UsageError
from loramerge.train.dataset.scan import Picture
from loramerge.train.spec.seeds import seed_of

__all__ = ["Captioning"]

_PLACE = "[trigger]"


@dataclass(frozen=True)
class Captioning:
    """The changes made to captions: trigger words, shuffled tags, dropout.

    Args:
        trigger: words that call the subject. They replace `[trigger]`, or are put in front of a
            caption that lacks them. An image without a caption gets them alone.
        shuffle_tags: shuffle the tags of a caption (its parts between commas) each time.
        keep_tokens: tags at the front that are never shuffled or dropped; None: the trigger's.
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
        if trigger.casefold() in text.casefold():
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
        keep = self.keep_tokens if self.keep_tokens is not None else self._of_trigger(picture)
        kept, rest = tags[:keep], tags[keep:]
        if self.shuffle_tags:
            draw.shuffle(rest)
        rest = [tag for tag in rest if draw.random() >= self.tag_dropout]
        return ", ".join([*kept, *rest])

    def _of_trigger(self, picture: Picture) -> int:
        return 0 if self.trigger is None or picture.regular else self.trigger.count(",") + 1
