"""The parameters of train: one field, one option, one word of a recipe."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from loramerge.errors import UsageError
from loramerge.steps.parameters import Doc
from loramerge.steps.writing import WriteParameters, memory_in_bytes

__all__ = ["Train"]


@dataclass(frozen=True, kw_only=True)
class _What:
    """What is trained."""

    base: Annotated[
        str,
        Doc(
            "Model to train on: a diffusers folder, a single file, or a registered name.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ]
    images: Annotated[
        str,
        Doc(
            "Folder of pictures, with captions in .txt or .caption files of the same names or in "
            "metadata.jsonl; folders named as kohya does (10_words) say repeats and caption.",
            ("--images",),
            "DIR",
            "folders",
        ),
    ]
    trigger: Annotated[
        str | None,
        Doc(
            "Words that every caption has: in the place of [trigger], else in front; alone where "
            "there is no caption.",
            metavar="WORDS",
        ),
    ] = None
    config: Annotated[
        str | None,
        Doc(
            "For a single file: a diffusers folder of its family, of which configurations and "
            "tokenizers are taken.",
            metavar="DIR",
            completes="bases",
        ),
    ] = None
    method: Annotated[
        str,
        Doc(
            "lora; dora; full: all weights of the UNet or transformer; blocks:PATTERN: those of some "
            "blocks, such as blocks:up_blocks. Of the last two the difference is written.",
        ),
    ] = "lora"
    rank: Annotated[int, Ge(1), Doc("Rank of the LoRA.", ("--rank", "-r"))] = 16
    alpha: Annotated[float | None, Gt(0), Doc("The scale is alpha / rank [default: the rank].")] = (
        None
    )
    targets: Annotated[
        str,
        Doc(
            "Layers that get a LoRA: attn, attn-only, attn-ff, attn-resnet, resnet, full-linear or "
            "full; LyCORIS' names are known too.",
            metavar="PRESET",
        ),
    ] = "attn-ff"
    include: Annotated[
        tuple[str, ...],
        Doc("Of these only layers whose names match; may be repeated.", metavar="PATTERN"),
    ] = ()
    exclude: Annotated[
        tuple[str, ...],
        Doc("Leave out layers whose names match; may be repeated.", metavar="PATTERN"),
    ] = ()
    rank_pattern: Annotated[
        tuple[str, ...],
        Doc("Another rank for layers whose names match; may be repeated.", metavar="PATTERN=RANK"),
    ] = ()
    alpha_pattern: Annotated[
        tuple[str, ...],
        Doc(
            "Another alpha for layers whose names match; may be repeated.", metavar="PATTERN=ALPHA"
        ),
    ] = ()
    rslora: Annotated[bool, Doc("Scale by alpha / √rank.")] = False
    dropout: Annotated[
        float, Interval(ge=0, lt=1), Doc("Dropout of what goes into the LoRA in training.")
    ] = 0.0
    init: Annotated[Literal["kaiming", "gaussian"], Doc("How down is drawn; up is zero.")] = (
        "kaiming"
    )
    text_encoder: Annotated[
        bool, Doc("Train a LoRA of the CLIP text encoders, too; T5 stays as it is.")
    ] = False
    save_rank: Annotated[
        int | None,
        Ge(1),
        Doc(
            "Write the result at this rank, by SVD [default: that of training; the whole difference "
            "for full and blocks]."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class _How:
    """How it is optimised."""

    steps: Annotated[int, Ge(1), Doc("Steps in all.")] = 1000
    lr: Annotated[
        float | None,
        Gt(0),
        Doc(
            "Peak learning rate [default: what is usual for the optimizer: 1e-4; 3e-5 for lion, 1 for "
            "prodigy and sgd].",
        ),
    ] = None
    text_lr: Annotated[
        float | None,
        Gt(0),
        Doc(
            "Peak learning rate of the text encoders [default: half of --lr; --lr for prodigy].",
        ),
    ] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], Doc("What the rate does after the warm-up.")
    ] = "cosine"
    warmup: Annotated[
        float, Interval(ge=0, lt=1), Doc("Part of the steps over which the rate rises.")
    ] = 0.05
    batch: Annotated[int, Ge(1), Doc("Pictures in a batch.")] = 1
    accumulate: Annotated[int, Ge(1), Doc("Batches whose gradients make one step.")] = 1
    optimizer: Annotated[
        str | None,
        Doc(
            "adamw, adamw8bit, prodigy, adafactor, lion, sgd, or the import path of a class, such as "
            "torch.optim.RAdam [default: adamw]."
        ),
    ] = None
    optimizer_option: Annotated[
        tuple[str, ...],
        Doc("Something the optimizer is made with; may be repeated.", metavar="NAME=VALUE"),
    ] = ()
    weight_decay: Annotated[float, Ge(0), Doc("Weight decay.")] = 0.01
    lora_plus: Annotated[
        float, Gt(0), Doc("LoRA+: learning rate of up, in units of that of down.")
    ] = 1.0
    max_grad_norm: Annotated[
        float,
        Ge(0),
        Doc(
            "Clip gradients to this norm, taken over all of them together; 0: no clipping.",
            former=("clip",),
        ),
    ] = 1.0
    min_snr: Annotated[
        float | None, Gt(0), Doc("γ of min-SNR weights (UNets); 5 in the paper [default: none].")
    ] = None
    noise_offset: Annotated[
        float, Ge(0), Doc("Deviation of a constant added to the noise (UNets).")
    ] = 0.0
    ema: Annotated[
        float | None,
        Interval(gt=0, lt=1),
        Doc("Keep a running mean with this decay instead of the last values, such as 0.99."),
    ] = None
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None,
        Doc(
            "Type of base and forward pass; what is trained stays float32 [default: bf16 on a GPU "
            "that has it, else no]."
        ),
    ] = None
    checkpointing: Annotated[
        Literal["on", "off"] | None,
        Doc(
            "Compute activations again in the backward pass, which saves memory [default: on a GPU].",
            result=False,
        ),
    ] = None
    vram: Annotated[
        str | None,
        Doc(
            "Memory that the run may take, such as 8GB: it picks checkpointing, precision, optimizer "
            "and resolution, as far as they are not given, or names the least that is needed "
            "[default: what is free, for which checkpointing alone is picked].",
            metavar="SIZE",
            result=False,
        ),
    ] = None
    seed: Annotated[int, Ge(0), Doc("Seed of everything that is drawn.")] = 0


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """How pictures and captions are read."""

    resolution: Annotated[
        int | None,
        Ge(8),
        Doc("Pixels of a square's side; other ratios have as many [default: the base's own]."),
    ] = None
    bucket_step: Annotated[
        int | None,
        Ge(1),
        Doc("Sides of buckets are multiples of it [default: 64, or what a small base needs]."),
    ] = None
    no_buckets: Annotated[bool, Doc("Cut every picture to a square.")] = False
    repeats: Annotated[
        int, Ge(1), Doc("How often an epoch shows a picture whose folder does not say.")
    ] = 1
    regularisation: Annotated[
        str,
        Doc(
            "Pictures of what the model is to keep; half of what it sees is of them. A folder; "
            "auto: the base draws them before training; none: everything drifts to the subject.",
            metavar="auto|DIR|none",
            completes="folders",
            words=("auto", "none"),
        ),
    ] = "none"
    regularisation_prompt: Annotated[
        tuple[str, ...],
        Doc(
            "With auto: draw this, such as 'a photo of a cat'; may be repeated [default: the "
            "captions without the trigger].",
            metavar="TEXT",
        ),
    ] = ()
    regularisation_count: Annotated[
        int | None,
        Ge(1),
        Doc("With auto: draw so many [default: as many as the subject has, at most 200]."),
    ] = None
    regularisation_guidance: Annotated[
        float | None,
        Ge(1),
        Doc(
            "With auto: guidance they are drawn with; 1 is without [default: as --guidance has it]."
        ),
    ] = None
    regularisation_weight: Annotated[
        float, Gt(0), Doc("Weight of the loss on regularisation pictures.")
    ] = 1.0
    shuffle_tags: Annotated[
        bool, Doc("Put the parts of a caption between commas in another order each time.")
    ] = False
    keep_tokens: Annotated[
        int | None,
        Ge(0),
        Doc("Tags at the front that stay where they are [default: the trigger's]."),
    ] = None
    tag_dropout: Annotated[
        float, Interval(ge=0, le=1), Doc("Probability with which a tag is left out.")
    ] = 0.0
    caption_dropout: Annotated[
        float, Interval(ge=0, le=1), Doc("Probability with which a picture has no caption.")
    ] = 0.05
    clip_skip: Annotated[
        int | None, Ge(1), Doc("Read so many layers before the text encoder's last (SD1).")
    ] = None


@dataclass(frozen=True, kw_only=True)
class _Watching:
    """What is kept and drawn while it runs; nothing here changes the result."""

    prompt: Annotated[
        tuple[str, ...],
        Doc(
            "Draw this while it runs; may be repeated [default: the trigger and the first caption].",
            metavar="TEXT",
            result=False,
        ),
    ] = ()
    negative: Annotated[str, Doc("Negative prompt of the samples.", result=False)] = ""
    sample_every: Annotated[
        int, Ge(0), Doc("Steps between samples, the first before any; 0: none.", result=False)
    ] = 250
    sample_steps: Annotated[int, Ge(1), Doc("Steps of the sampler.", result=False)] = 25
    guidance: Annotated[
        float | None,
        Ge(1),
        Doc(
            "Guidance of the samples; 1 is without [default: 7; 3.5 for Flux.1 dev, none for "
            "schnell].",
            result=False,
        ),
    ] = None
    guidance_rescale: Annotated[
        float | None,
        Interval(ge=0, le=1),
        Doc(
            "How far guidance keeps the spread of what it strengthens, as for preview [default: 0.7 "
            "for a base of zero terminal SNR, else 0].",
            result=False,
        ),
    ] = None
    sample_seed: Annotated[
        int, Ge(0), Doc("Seed of the first sample; the next has the next.", result=False)
    ] = 0
    save_every: Annotated[
        int,
        Ge(0),
        Doc(
            "Steps between numbered adapters in the run's folder, each drawn in the samples; 0: none.",
            result=False,
        ),
    ] = 0
    state_every: Annotated[
        int,
        Ge(1),
        Doc("Steps between states that a stopped run can go on from.", result=False),
    ] = 100
    tensorboard: Annotated[
        bool,
        Doc(
            "Write loss, rate, gradients and samples as events of TensorBoard, too, into the run's "
            "folder (needs the extra tensorboard).",
            result=False,
        ),
    ] = False
    folder: Annotated[
        str | None,
        Doc(
            "Folder of the run's log, state, samples and report [default: the output's name and "
            "-run].",
            metavar="DIR",
            result=False,
        ),
    ] = None
    cache: Annotated[
        str | None,
        Doc(
            "Folder of latents, encoded captions and drawn pictures, which runs may share [default: "
            "cache in the run's folder].",
            metavar="DIR",
            result=False,
        ),
    ] = None
    resume: Annotated[
        bool,
        Doc(
            "Go on where a stopped run was, to the same bytes; begin if there is none.",
            result=False,
        ),
    ] = False
    dry_run: Annotated[
        bool,
        Doc("Look at the pictures and say what would be done, with time and memory.", recipe=False),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Train(_Watching, _Pictures, _How, _What, WriteParameters):
    """Train an adapter on pictures.

    Needs a base and a folder of pictures; everything else has a default. The result is an ordinary
    adapter. Beside it a folder keeps the log, samples as they change, a report, and a state from
    which a stopped run goes on with --resume. The run stops if a module gets no gradient.
    """

    def check(self) -> None:
        """Refuse parameters that cannot be meant, before anything is opened.

        Raises:
            UsageError: naming what is wrong.
        """
        self.target(), self.float_type()
        self.ranks(), self.alphas(), self.optimizer_options()
        if self.vram is not None:
            memory_in_bytes(self.vram)
        word, _, rest = self.method.partition(":")
        if not (
            (word in ("lora", "dora", "full") and ":" not in self.method)
            or (word == "blocks" and rest.strip())
        ):
            raise UsageError(
                f"{self.method!r} is no method", expected="lora, dora, full, or blocks:PATTERN"
            )
        if word == "dora" and self.save_rank is not None:
            raise UsageError(
                "a DoRA cannot be cut to another rank without its base",
                hint="loramerge resize --base BASE --rank N makes a plain LoRA of it",
            )
        self._check_prior()
        if word in ("full", "blocks") and self.text_encoder:
            raise UsageError("only a LoRA of the text encoders can be trained", found=self.method)

    def _check_prior(self) -> None:
        if not self.regularisation.strip():
            raise UsageError("an empty name stands for no folder", expected="auto, DIR or none")
        alone = {
            "--regularisation-prompt": self.regularisation_prompt,
            "--regularisation-count": self.regularisation_count,
            "--regularisation-guidance": self.regularisation_guidance,
        }
        for option, value in alone.items():
            if value and self.regularisation != "auto":
                raise UsageError(
                    f"{option} is for a base that draws, and it is not asked to",
                    found=f"--regularisation {self.regularisation}",
                    hint="--regularisation auto",
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
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return min(int(self.steps * self.warmup), self.steps - 1)


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return what stands before and after the last `=` of each text.

    Raises:
        UsageError: if there is none.
    """
    found = []
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{text!r} is no pair", expected="NAME=VALUE")
        found.append((name.strip(), value.strip()))
    return found


def _number(text: str, kind: Any) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None


def _literal(text: str) -> Any:
    """Return the value a text stands for in Python, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
