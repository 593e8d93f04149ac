"""The interface of a trainable architecture: all in which architectures differ.

Everything else in `train` is the same for all of them. An architecture is a subclass of `Architecture`
in a file of its own in `architectures/`, which gives an instance as `ARCHITECTURE`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from loramerge.train.dataset.buckets import Size
from loramerge.train.models.objective import Objective

__all__ = ["Architecture", "Config", "Encoder", "Guidance", "Inputs", "Loaded", "Network", "Shapes",
           "States"]  # fmt: skip

Config = Mapping[str, Any]  # of a denoiser, as diffusers keeps it in memory and in config.json
Shapes = Mapping[str, tuple[int, ...]]  # of the weights of modules
Guidance = Literal["classifier-free", "embedded", "none"]


class States(NamedTuple):
    """States of texts, `(n, tokens, width)`, and pooled ones, `(n, width)`, where a kind has them."""

    text: Any
    pooled: Any = None


class Inputs(NamedTuple):
    """The inputs of a denoiser: latents `(n, c, h, w)`, texts, and SDXL's sizes `(n, 6)`."""

    latents: Any
    states: States
    sizes: Any = None


@dataclass(frozen=True)
class Network:
    """A component of a single file: the shapes of its modules, and whether OpenCLIP named them."""

    shapes: Shapes
    openclip: bool = False


@dataclass(frozen=True)
class Encoder:
    """A text encoder.

    Args:
        model, tokenizer: classes: names of transformers, or import paths.
        folder: of the tokenizer.
        trained: whether it can be.
        optional: whether a base may lack it.
    """

    model: str
    tokenizer: str
    folder: str
    trained: bool = True
    optional: bool = False


class Loaded(Protocol):
    """The models of a base as an architecture's methods use them; see `pipeline.Pipeline`.

    Attributes:
        windows: in which CLIP reads every text; see `clip`.
    """

    denoiser: Any
    scheduler: Any
    encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    windows: int


class Architecture(ABC):
    """A kind of model.

    Attributes:
        name: for keys and messages.
        pipelines: what a model_index.json may call it; the first is what single files are read by.
        families: of single files.
        component: what adapters call the denoiser.
        denoiser: its class: a name of diffusers, or an import path.
        scheduler: class of diffusers that the base's configuration is read into.
        encoders: component → text encoder, in the order in which texts are read.
        options: further options with which diffusers reads a single file.
        flow: whether it learns a rectified flow, not noise over discrete steps.
        sizes: whether the denoiser is told of sizes and cuts.
        zeroes_empty: whether the base's configuration may say that no prompt is states of zeros.
        windows: most windows in which CLIP reads a text; see `clip`.
        usual_guidance: of pictures.
        refused: option of training or preview that cannot apply → why.
    """

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    families: ClassVar[tuple[str, ...]]
    component: ClassVar[str]
    denoiser: ClassVar[str]
    scheduler: ClassVar[str]
    encoders: ClassVar[Mapping[str, Encoder]]
    options: ClassVar[Mapping[str, Any]] = {}
    flow: ClassVar[bool] = False
    sizes: ClassVar[bool] = False
    zeroes_empty: ClassVar[bool] = False
    windows: ClassVar[int] = 1
    usual_guidance: ClassVar[float] = 7.0
    refused: ClassVar[Mapping[str, str]] = {}

    @property
    def class_name(self) -> str:
        """The name of the denoiser's class."""
        return self.denoiser.rpartition(".")[2]

    @abstractmethod
    def channels(self, config: Config) -> int:
        """Return the channels of the latents the denoiser reads."""

    @abstractmethod
    def unit(self, config: Config, factor: int) -> int:
        """Return the pixels that every side must be a multiple of; `factor`: those of one latent."""

    @abstractmethod
    def resolution(self, config: Config, factor: int) -> int:
        """Return the pixels of a side of what the denoiser was made for."""

    @abstractmethod
    def objective(self, scheduler: Any) -> Objective:
        """Return the objective: the noising of latents, and the target of predictions."""

    @abstractmethod
    def encode(self, loaded: Loaded, texts: Sequence[str], skip: int | None) -> States:
        """Return the states of texts; gradients flow where the encoders are trained.

        Args:
            skip: the layer of CLIP that is read, counted from the last, which is 1; None: the usual.
        """

    @abstractmethod
    def predict(
        self,
        denoiser: Any,
        latents: Any,
        times: Any,
        states: States,
        sizes: Any = None,
        guidance: float = 1.0,
    ) -> Any:
        """Return the denoiser's output, shaped as the latents are.

        Args:
            latents: noised, in the denoiser's type.
            times: as `Objective.told` gives them, `(n,)` or a single one.
            guidance: which the denoiser is told where it is embedded.
        """

    @abstractmethod
    def sampler(self, loaded: Loaded) -> Any:
        """Return a scheduler of diffusers that draws."""

    @abstractmethod
    def schedule(self, scheduler: Any, config: Config, steps: int, latents: Any) -> None:
        """Set the steps of a sampler for latents of a size."""

    @abstractmethod
    def inputs(self, config: Config, batch: int, size: Size, factor: int) -> Inputs:
        """Return empty tensors of the shapes the denoiser takes for pictures of a size."""

    @abstractmethod
    def blocks(self, denoiser: Any) -> int:
        """Return the number of blocks whose inputs checkpointing keeps."""

    def largest(self, config: Config, factor: int) -> int | None:
        """Return the most pixels of a side; None where there is no limit."""
        return None

    def guidance(self, config: Config) -> Guidance:
        """Return the kind of guidance by the text."""
        return "classifier-free"

    def text_length(self, config: Config, component: str, tokenizer: Any) -> int:
        """Return the number of tokens that a text encoder reads, with one beginning and one end."""
        return self.windows * (int(tokenizer.model_max_length) - 2) + 2

    def reading(self, config: Config) -> str:
        """Return everything beside the encoders that states of texts follow from."""
        return ""

    def configurations(
        self, networks: Mapping[str, Network], predicts: str | None
    ) -> Mapping[str, Mapping[str, Any]]:
        """Return file → content of what a diffusers folder of a single file would hold beside weights.

        Args:
            networks: by component, `vae` too.
            predicts: as diffusers calls it.

        Empty where shapes do not tell it.
        """
        return {}

    def unread(self, config: Config) -> tuple[str, ...]:
        """Return patterns of modules of the denoiser whose output nothing reads."""
        return ()

    def unread_text(self, encoder: Any, skip: int | None = None) -> tuple[str, ...]:
        """Return patterns of layers of a text encoder whose output nothing reads.

        Args:
            skip: the layer that is read instead, counted from the last.
        """
        return ()
