"""All parameters of `train` together, and which of them exclude each other."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from loramerge.errors import Setting, UsageError
from loramerge.steps.amounts import memory_in_bytes
from loramerge.steps.parameters import Doc
from loramerge.steps.writing import UsualDialect, WriteParameters
from loramerge.verbs.train.parameters.images import ImageParameters
from loramerge.verbs.train.parameters.model import ModelParameters
from loramerge.verbs.train.parameters.monitoring import MonitoringParameters
from loramerge.verbs.train.parameters.optimisation import OptimisationParameters

__all__ = ["Train"]


@dataclass(frozen=True, kw_only=True)
class Train(
    MonitoringParameters, ImageParameters, OptimisationParameters, ModelParameters, WriteParameters
):
    """Train an adapter on images.

    Needs a base and a folder of images; everything else has a default. The result is an ordinary
    adapter. A folder beside it holds the log, samples, a report, and the state that --resume
    continues from. The run stops if a module gets no gradient.
    """

    output: Annotated[
        str | None,
        Doc(
            "File to write [default: the base's name with the trigger, or with the name of the folder "
            "of images].",
            ("--output", "-o"),
            "FILE",
            recipe=False,
            path=True,
        ),
    ] = None
    to: UsualDialect = None
    dtype: Annotated[
        str | None,
        Doc("Float type to write: float32, float16, bfloat16 [default: float32].", metavar="TYPE"),
    ] = None

    def check(self) -> None:
        """Refuse contradictory parameters before any file is opened.

        Raises:
            UsageError: naming the problem.
        """
        self.target(), self.float_type()
        self.ranks(), self.alphas(), self.optimizer_options(), self.clip_layer
        self._check_timesteps()
        self._check_length()
        if self.vram is not None:
            memory_in_bytes(self.vram)
        self._check_method()
        self._check_prior()

    def _check_method(self) -> None:
        word, _, rest = self.method.partition(":")
        if not (
            (word in ("lora", "dora", "full") and ":" not in self.method)
            or (word == "blocks" and rest.strip())
        ):
            raise UsageError(
                f"{self.method!r} is not a method", expected="lora, dora, full, or blocks:PATTERN"
            )
        if word == "dora" and self.save_rank is not None:
            raise UsageError(
                "a DoRA cannot be cut to another rank without its base",
                hint=(
                    "leave out ",
                    Setting("save_rank", self.save_rank),
                    "; loramerge resize can turn the result into a plain LoRA",
                ),
            )
        if word in ("full", "blocks") and self.text_encoder:
            raise UsageError("text encoders can only be trained with a LoRA", found=self.method)
        if self.init_from is not None and self.method != "lora":
            raise UsageError(
                "only a LoRA can start from an adapter", found=self.method,
                hint=("leave out ", Setting("init_from")),
            )  # fmt: skip

    def _check_timesteps(self) -> None:
        if self.timesteps is not None:
            from loramerge.train.spec.timesteps import Timesteps

            Timesteps.of(self.timesteps)

    def _check_length(self) -> None:
        if self.epochs is not None and self.steps != Train.steps:
            raise UsageError(
                "the length of the run is given twice",
                hint=(
                    "leave out ",
                    Setting("steps", self.steps),
                    " or ",
                    Setting("epochs", self.epochs),
                ),
            )

    def _check_prior(self) -> None:
        if not self.regularisation.strip():
            raise UsageError("an empty name is not a folder", expected="auto, DIR or none")
        alone = {
            "regularisation_prompt": self.regularisation_prompt,
            "regularisation_count": self.regularisation_count,
            "regularisation_guidance": self.regularisation_guidance,
        }
        for name, value in alone.items():
            if value and self.regularisation != "auto":
                raise UsageError(
                    f"{name} applies only to regularisation images that the base generates",
                    found=f"regularisation is {self.regularisation!r}",
                    hint=("add ", Setting("regularisation", "auto")),
                )

    def ranks(self) -> dict[str, int]:
        """Return pattern → rank."""
        return {name: _number(text, int) for name, text in _pairs(self.rank_pattern)}

    def alphas(self) -> dict[str, float]:
        """Return pattern → alpha."""
        return {name: _number(text, float) for name, text in _pairs(self.alpha_pattern)}

    def optimizer_options(self) -> tuple[tuple[str, Any], ...]:
        """Return (name, value) of what the optimizer is made with."""
        return tuple((name, _literal(text)) for name, text in _pairs(self.optimizer_option))

    @property
    def clip_layer(self) -> int | None:
        """The layer of CLIP that is read, counted from the last, which is 1.

        Raises:
            UsageError: if it is not a number from 1 on.
        """
        if self.clip_skip is None:
            return None
        layer = _number(str(self.clip_skip), int)
        if layer < 1:
            raise UsageError(
                f"clip_skip cannot be {layer}", expected="a whole number of at least 1"
            )
        return int(layer)

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return min(int(self.steps * self.warmup), self.steps - 1)


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the parts before and after the last `=` of each text.

    Raises:
        UsageError: if there is none.
    """
    found = []
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{text!r} is not a pair", expected="NAME=VALUE")
        found.append((name.strip(), value.strip()))
    return found


def _number(text: str, kind: Any) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a {'whole ' if kind is int else ''}number") from None


def _literal(text: str) -> Any:
    """Return the Python literal that a text spells, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
