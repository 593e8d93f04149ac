"""The parameters that functions of the Python interface hand on to verbs, typed.

Generated from the verbs' dataclasses by tests/signatures/test_signatures.py: do not edit. To renew it:
LORAMERGE_UPDATE_DOCS=1 python -m pytest tests/signatures
"""

from collections.abc import Sequence
from keyword import iskeyword
from os import PathLike
from typing import Literal, TypedDict

from loramerge.parameters import Parameter


def key_of(one: Parameter) -> str:
    """Return the name of a parameter in Python: its word, unless that is a keyword."""
    return one.name if iskeyword(one.word) else one.word


class MixParameters(TypedDict, total=False):
    """Parameters of `mix`."""

    to: str | None
    program: Literal["comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai", "peft"] | None
    dtype: str | None
    skip_unknown: bool
    base: str | PathLike[str] | None
    rank: int | None
    conv_rank: int | None
    energy: float | None
    ratio: float | None
    cumulative: float | None
    max_size: str | int | None
    max_error: float | None
    max_module_error: float | None
    fair: bool
    method: str
    scale: str | float | None
    correction: str | None
    compat: Literal["kohya", "kohya-concat", "peft-linear"] | None
    embeddings: Literal["all", "first", "none"]
    explain: bool


class ResizeParameters(TypedDict, total=False):
    """Parameters of `resize`."""

    to: str | None
    program: Literal["comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai", "peft"] | None
    dtype: str | None
    skip_unknown: bool
    base: str | PathLike[str] | None
    rank: int | None
    conv_rank: int | None
    energy: float | None
    ratio: float | None
    cumulative: float | None
    max_size: str | int | None
    max_error: float | None
    max_module_error: float | None
    fair: bool
    relative_to: str | PathLike[str] | None
    norm: Literal["frobenius", "spectral"]


class ConvertParameters(TypedDict, total=False):
    """Parameters of `convert`."""

    to: str | None
    program: Literal["comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai", "peft"] | None
    dtype: str | None
    skip_unknown: bool
    base: str | PathLike[str] | None
    rank: int | None
    conv_rank: int | None
    energy: float | None
    ratio: float | None
    cumulative: float | None
    max_size: str | int | None
    max_error: float | None
    max_module_error: float | None
    to_lora: bool
    keep: str | Sequence[str]
    drop: str | Sequence[str]
    rescale: float | None


class HealParameters(TypedDict, total=False):
    """Parameters of `heal`."""

    to: str | None
    program: Literal["comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai", "peft"] | None
    dtype: str | None
    only: str | Sequence[str]
    alpha_zero: Literal["drop", "rank"]
    drop_damaged: bool


class ExtractParameters(TypedDict, total=False):
    """Parameters of `extract`."""

    to: str | None
    program: Literal["comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai", "peft"] | None
    dtype: str | None
    rank: int | None
    conv_rank: int | None
    energy: float | None
    ratio: float | None
    cumulative: float | None
    max_size: str | int | None
    max_error: float | None
    max_module_error: float | None
    vectors: bool
    full: bool
    keep_rounding: bool
    skip_missing: str | Sequence[str]


class BakeParameters(TypedDict, total=False):
    """Parameters of `bake`."""

    skip_unknown: bool
    skip_missing: str | Sequence[str]
    trained_on: str | PathLike[str] | None
    rounding: Literal["nearest", "stochastic", "feedback", "balanced"]
    dtype: str | None
    keep_touched: str | None
    storage: str | Sequence[str]
    allow_loss: bool
    allow_again: bool
    allow_nonfinite: bool
    dry_run: bool
    force: bool


class UnbakeParameters(TypedDict, total=False):
    """Parameters of `unbake`."""

    skip_unknown: bool
    base: str | PathLike[str] | None
    skip_missing: str | Sequence[str]
    allow_unrecorded: bool
    dry_run: bool
    force: bool


class MergeParameters(TypedDict, total=False):
    """Parameters of `merge`."""

    skip_unknown: bool
    method: str
    scale: str | float | None
    base: str | PathLike[str] | None
    take: str | Sequence[str]
    layers: str | Sequence[str]
    vae: str | PathLike[str] | None
    text_encoder: str | PathLike[str] | None
    layout: str | PathLike[str] | None
    union: Literal["first", "zero"] | None
    skip_missing: str | Sequence[str]
    dtype: str | None
    allow_nonfinite: bool
    dry_run: bool
    force: bool


class PreviewParameters(TypedDict, total=False):
    """Parameters of `preview`."""

    baked: str | PathLike[str] | Sequence[str | PathLike[str]]
    prompt: str | Sequence[str]
    seed: int | Sequence[int]
    weight: str | float | Sequence[str | float]
    together: bool
    no_base: bool
    negative: str
    size: int | None
    steps: int
    sampler: Literal["ddim", "euler", "euler-a", "heun", "dpm++", "dpm++-karras", "unipc"] | None
    guidance: float | None
    guidance_rescale: float | None
    clip_skip: int | None
    prediction: Literal["epsilon", "v", "sample"] | None
    config: str | PathLike[str] | None


class TrainParameters(TypedDict, total=False):
    """Parameters of `train`."""

    to: str | None
    program: Literal["comfyui", "a1111", "forge", "diffusers", "kohya", "invokeai", "peft"] | None
    dtype: str | None
    trigger: str | None
    config: str | PathLike[str] | None
    method: str
    rank: int
    alpha: float | None
    targets: str
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    rank_pattern: str | Sequence[str]
    alpha_pattern: str | Sequence[str]
    rslora: bool
    dropout: float
    init_from: str | PathLike[str] | None
    init: Literal["kaiming", "gaussian"]
    text_encoder: bool
    save_rank: int | None
    steps: int
    epochs: float | None
    lr: float | None
    text_lr: float | None
    schedule: Literal["constant", "linear", "cosine"]
    warmup: float
    batch: int
    accumulate: int
    optimizer: str | None
    optimizer_option: str | Sequence[str]
    weight_decay: float
    lora_plus: float
    max_grad_norm: float
    min_snr: float | None
    noise_offset: float
    prediction: Literal["epsilon", "v", "sample"] | None
    timesteps: str | None
    ema: float | None
    precision: Literal["no", "bf16", "fp16"] | None
    checkpointing: Literal["on", "off"] | None
    vram: str | int | None
    seed: int
    resolution: int | None
    bucket_step: int | None
    no_buckets: bool
    repeats: int
    regularisation: str | PathLike[str]
    regularisation_prompt: str | Sequence[str]
    regularisation_count: int | None
    regularisation_guidance: float | None
    regularisation_weight: float
    shuffle_tags: bool
    keep_tokens: int | None
    tag_dropout: float
    caption_dropout: float
    validation: float
    clip_skip: str | int | None
    prompt: str | Sequence[str]
    negative: str
    sample_every: int
    sample_steps: int
    guidance: float | None
    guidance_rescale: float | None
    sample_seed: int
    save_every: str | int | None
    validate_every: int
    state_every: int
    tensorboard: bool
    folder: str | PathLike[str] | None
    cache: str | PathLike[str] | None
    resume: bool
