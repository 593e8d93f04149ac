"""The parameters of train: one field, one option, one word of a recipe."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from loramerge.errors import Setting, UsageError
from loramerge.parameters import Bounds
from loramerge.steps.parameters import Doc
from loramerge.steps.writing import WriteParameters, memory_in_bytes

__all__ = ["Train"]


@dataclass(frozen=True, kw_only=True)
class _Model:
    """The base, the images and the trained part."""

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
            "Folder of images. Captions are read from .txt or .caption files of the same names, or from "
            "metadata.jsonl. A folder named as in kohya's scripts (10_words) gives repeats and caption.",
            ("--images",),
            "DIR",
            "folders",
        ),
    ]
    trigger: Annotated[
        str | None,
        Doc(
            "Words for the subject. They replace [trigger] in a caption; a caption without "
            "[trigger] and without these words gets them in front; an image without a caption "
            "gets only them.",
            metavar="WORDS",
        ),
    ] = None
    config: Annotated[
        str | None,
        Doc(
            "For a single file: any diffusers folder of its family, for configurations and "
            "tokenizers.",
            metavar="DIR",
            completes="bases",
        ),
    ] = None
    method: Annotated[
        str,
        Doc(
            "lora, dora, full (all weights of the UNet or transformer), or blocks:PATTERN (the weights "
            "of some blocks, such as blocks:up_blocks). For the last two the difference to the base is "
            "written.",
        ),
    ] = "lora"
    rank: Annotated[int, Bounds(ge=1), Doc("Rank of the LoRA.", ("--rank", "-r"))] = 16
    alpha: Annotated[
        float | None, Bounds(gt=0), Doc("The scale is alpha / rank [default: the rank].")
    ] = None
    targets: Annotated[
        str,
        Doc(
            "Layers that get a LoRA: attn, attn-only, attn-ff, attn-resnet, resnet, full-linear or "
            "full. The names of LyCORIS are accepted too.",
            metavar="PRESET",
        ),
    ] = "attn-ff"
    include: Annotated[
        tuple[str, ...],
        Doc(
            "Take only those of these layers whose names match; may be repeated.", metavar="PATTERN"
        ),
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
        float, Bounds(ge=0, lt=1), Doc("Dropout on the input of the LoRA in training.")
    ] = 0.0
    init_from: Annotated[
        str | None,
        Doc(
            "Adapter that the LoRA starts from, such as an earlier result; its ranks may be lower.",
            metavar="ADAPTER",
            completes="adapters",
        ),
    ] = None
    init: Annotated[Literal["kaiming", "gaussian"], Doc("Initial values of down; up is zero.")] = (
        "kaiming"
    )
    text_encoder: Annotated[
        bool, Doc("Train a LoRA of the CLIP text encoders too; T5 stays frozen.")
    ] = False
    save_rank: Annotated[
        int | None,
        Bounds(ge=1),
        Doc(
            "Reduce the result to this rank by SVD before it is written [default: the rank of training; "
            "the whole difference for full and blocks]."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class _Optimisation:
    """The optimisation."""

    steps: Annotated[int, Bounds(ge=1), Doc("Number of steps.")] = 1000
    epochs: Annotated[
        float | None, Bounds(gt=0), Doc("Length of the run in epochs, instead of --steps.")
    ] = None
    lr: Annotated[
        float | None,
        Bounds(gt=0),
        Doc(
            "Peak learning rate [default: 1e-4; 3e-5 for lion, 1 for prodigy and sgd].",
        ),
    ] = None
    text_lr: Annotated[
        float | None,
        Bounds(gt=0),
        Doc(
            "Peak learning rate of the text encoders [default: half of --lr; --lr for prodigy].",
        ),
    ] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Doc("Learning rate schedule after the warm-up."),
    ] = "cosine"
    warmup: Annotated[
        float,
        Bounds(ge=0, lt=1),
        Doc("Share of the steps used for the warm-up, in which the learning rate rises."),
    ] = 0.05
    batch: Annotated[int, Bounds(ge=1), Doc("Images in a batch.")] = 1
    accumulate: Annotated[
        int, Bounds(ge=1), Doc("Batches whose gradients are accumulated for one step.")
    ] = 1
    optimizer: Annotated[
        str | None,
        Doc(
            "adamw, adamw8bit, prodigy, adafactor, lion, sgd, or the import path of a class, such as "
            "torch.optim.RAdam [default: adamw]."
        ),
    ] = None
    optimizer_option: Annotated[
        tuple[str, ...],
        Doc("Argument of the optimizer; may be repeated.", metavar="NAME=VALUE"),
    ] = ()
    weight_decay: Annotated[float, Bounds(ge=0), Doc("Weight decay.")] = 0.01
    lora_plus: Annotated[
        float, Bounds(gt=0), Doc("LoRA+: learning rate of up as a multiple of that of down.")
    ] = 1.0
    max_grad_norm: Annotated[
        float,
        Bounds(ge=0),
        Doc(
            "Clip gradients to this norm, taken over all of them together; 0: no clipping.",
            former=("clip",),
        ),
    ] = 1.0
    min_snr: Annotated[
        float | None,
        Bounds(gt=0),
        Doc("γ of min-SNR weighting (UNets), such as 5 [default: none]."),
    ] = None
    noise_offset: Annotated[
        float,
        Bounds(ge=0),
        Doc("Standard deviation of a constant added to each channel of the noise (UNets)."),
    ] = 0.0
    prediction: Annotated[
        Literal["epsilon", "v", "sample"] | None,
        Doc(
            "What a UNet predicts: the noise, v or the image [default: read from the base; from "
            "the keys v_pred and ztsnr, the header or the configuration of a single file]."
        ),
    ] = None
    timesteps: Annotated[
        str | None,
        Doc(
            "Times to train on: uniform or sigmoid, a range such as 200..800, shift=3; several "
            "with commas [default: the usual ones for the base].",
            metavar="WHICH",
        ),
    ] = None
    ema: Annotated[
        float | None,
        Bounds(gt=0, lt=1),
        Doc(
            "Write a moving average of the trained weights with this decay (such as 0.99) "
            "instead of the last ones."
        ),
    ] = None
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None,
        Doc(
            "Mixed precision: type of the base and the forward pass. Trained parameters stay float32 "
            "[default: bf16 on a GPU that has it, else no]."
        ),
    ] = None
    checkpointing: Annotated[
        Literal["on", "off"] | None,
        Doc(
            "Gradient checkpointing: compute activations again in the backward pass, which saves memory "
            "and costs time [default: on for a GPU].",
            result=False,
        ),
    ] = None
    vram: Annotated[
        str | None,
        Doc(
            "Memory that the run may use, such as 8GB. Chooses checkpointing, precision, "
            "optimizer and resolution unless they are given; if it is not enough, the error "
            "says how much is needed [default: the free memory; then only checkpointing is "
            "chosen].",
            metavar="SIZE",
            result=False,
            number=int,
        ),
    ] = None
    seed: Annotated[int, Bounds(ge=0), Doc("Seed of all random numbers.")] = 0


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images and their captions."""

    resolution: Annotated[
        int | None,
        Bounds(ge=8),
        Doc("Side of a square image; other ratios have as many pixels [default: the base's]."),
    ] = None
    bucket_step: Annotated[
        int | None,
        Bounds(ge=1),
        Doc("Sides of buckets are multiples of this [default: 64, or what a small base needs]."),
    ] = None
    no_buckets: Annotated[bool, Doc("Crop every image to a square.")] = False
    repeats: Annotated[
        int,
        Bounds(ge=1),
        Doc("Times that each image occurs in an epoch, unless its folder's name gives a number."),
    ] = 1
    regularisation: Annotated[
        str,
        Doc(
            "Regularisation images (prior preservation): examples of what the model should "
            "keep; they are half of the images in training. A folder, auto (the base generates "
            "them before training), or none.",
            metavar="auto|DIR|none",
            completes="folders",
            words=("auto", "none"),
        ),
    ] = "none"
    regularisation_prompt: Annotated[
        tuple[str, ...],
        Doc(
            "With auto: prompt of these images, such as 'a photo of a cat'; may be repeated [default: "
            "the captions without the trigger].",
            metavar="TEXT",
        ),
    ] = ()
    regularisation_count: Annotated[
        int | None,
        Bounds(ge=1),
        Doc(
            "With auto: number of images [default: the number of the subject's images, at most "
            "200]."
        ),
    ] = None
    regularisation_guidance: Annotated[
        float | None,
        Bounds(ge=1),
        Doc("With auto: their classifier-free guidance; 1 is none [default: that of the samples]."),
    ] = None
    regularisation_weight: Annotated[
        float, Bounds(gt=0), Doc("Weight of the loss on regularisation images.")
    ] = 1.0
    shuffle_tags: Annotated[
        bool, Doc("Shuffle the tags of a caption (its parts between commas) each time.")
    ] = False
    keep_tokens: Annotated[
        int | None,
        Bounds(ge=0),
        Doc(
            "Number of tags at the front that are never shuffled or dropped; the trigger's tags "
            "never are [default: none]."
        ),
    ] = None
    tag_dropout: Annotated[
        float, Bounds(ge=0, le=1), Doc("Probability with which a tag is dropped.")
    ] = 0.0
    caption_dropout: Annotated[
        float,
        Bounds(ge=0, le=1),
        Doc("Probability with which an image is shown without its caption."),
    ] = 0.05
    # text, because in older headers a number counts from 0; see `steps.provenance.recipe_in`
    validation: Annotated[
        float,
        Bounds(ge=0, lt=1),
        Doc(
            "Share of the subject's images that is held back: the loss on them, always with the "
            "same noise, is in the log and in the report."
        ),
    ] = 0.0
    clip_skip: Annotated[
        str | int | None,
        Doc(
            "Layer of the text encoder that is used, counted from the last as in kohya's "
            "scripts: 1 is the last, 2 the one before (SD1, SD2) [default: 1].",
            metavar="N",
            number=int,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class _Monitoring:
    """Files and samples of a run; nothing here changes the result."""

    prompt: Annotated[
        tuple[str, ...],
        Doc(
            "Prompt of a sample; may be repeated [default: the trigger and the first caption].",
            metavar="TEXT",
            result=False,
        ),
    ] = ()
    negative: Annotated[str, Doc("Negative prompt of the samples.", result=False)] = ""
    sample_every: Annotated[
        int,
        Bounds(ge=0),
        Doc("Steps between samples, from step 0 on; 0: no samples.", result=False),
    ] = 250
    sample_steps: Annotated[
        int, Bounds(ge=1, le=1000), Doc("Steps of the sampler.", result=False)
    ] = 25
    guidance: Annotated[
        float | None,
        Bounds(ge=1),
        Doc(
            "Classifier-free guidance of the samples; 1 is none [default: 7; 3.5 for Flux.1 dev, none "
            "for schnell].",
            result=False,
        ),
    ] = None
    guidance_rescale: Annotated[
        float | None,
        Bounds(ge=0, le=1),
        Doc(
            "Guidance rescale of the samples, from 0 to 1 [default: 0.7 for a base with zero terminal "
            "SNR, else 0].",
            result=False,
        ),
    ] = None
    sample_seed: Annotated[
        int,
        Bounds(ge=0),
        Doc("Seed of the first sample; each further prompt has the next seed.", result=False),
    ] = 0
    save_every: Annotated[
        str | int,
        Doc(
            "Steps between numbered adapters in the run's folder, or epochs, such as 2epochs; each has "
            "a row of samples; 0: none.",
            metavar="N",
            result=False,
            number=int,
        ),
    ] = "0"
    validate_every: Annotated[
        int, Bounds(ge=1), Doc("Steps between losses on the images of --validation.", result=False)
    ] = 100
    state_every: Annotated[
        int,
        Bounds(ge=1),
        Doc("Steps between saved states, from which a stopped run can resume.", result=False),
    ] = 100
    tensorboard: Annotated[
        bool,
        Doc(
            "Also write loss, rate, gradients and samples for TensorBoard into the run's folder "
            "(needs the extra tensorboard).",
            result=False,
        ),
    ] = False
    folder: Annotated[
        str | None,
        Doc(
            "Folder for the run's log, state, samples and report [default: the output's name "
            "with -run].",
            metavar="DIR",
            result=False,
            path=True,
        ),
    ] = None
    cache: Annotated[
        str | None,
        Doc(
            "Folder for encoded images and captions and for generated images; runs may share it "
            "[default: cache in the run's folder].",
            metavar="DIR",
            result=False,
            path=True,
        ),
    ] = None
    resume: Annotated[
        bool,
        Doc(
            "Continue a stopped run, with the same result; with more --steps, continue a "
            "finished one; start one if there is none.",
            result=False,
        ),
    ] = False
    dry_run: Annotated[
        bool,
        Doc("Check the images and show what would be done, with time and memory.", recipe=False),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Train(_Monitoring, _Images, _Optimisation, _Model, WriteParameters):
    """Train an adapter on images.

    Needs a base and a folder of images; everything else has a default. The result is an ordinary
    adapter. A folder beside it holds the log, samples, a report, and the state that --resume
    continues from. The run stops if a module gets no gradient.
    """

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
        self._check_prior()
        if word in ("full", "blocks") and self.text_encoder:
            raise UsageError("text encoders can only be trained with a LoRA", found=self.method)

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
        if self.init_from is not None and self.method != "lora":
            raise UsageError(
                "only a LoRA can start from an adapter", found=self.method,
                hint=("leave out ", Setting("init_from")),
            )  # fmt: skip

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
