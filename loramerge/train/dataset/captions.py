"""What a picture's caption becomes in one draw: a pure function of the seed and the draw's number."""

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
    """How captions are made.

    Args:
        trigger: words that every caption of the subject has: in the place of `[trigger]`, else in
            front, unless the caption has them already. Alone where there is no caption.
        shuffle_tags: put the tags (parts between commas) of each draw in another order.
        keep_tokens: tags at the front that stay where they are; None: the trigger's, if there is one.
        tag_dropout: probability with which each tag that is not kept is left out.
        caption_dropout: probability with which a draw has no caption, so that guidance still works.
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
        """Whether one picture has several captions (beside none)."""
        return self.shuffle_tags or self.tag_dropout > 0

    def whole(self, picture: Picture) -> str:
        """Return a picture's caption with the trigger, before anything is drawn."""
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
        """Return the caption of a draw; `number` counts the examples of the whole run."""
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
