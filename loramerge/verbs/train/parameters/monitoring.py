"""The files and samples of a run: parameters of `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.parameters import Bounds
from loramerge.steps.parameters import Doc

__all__ = ["MonitoringParameters"]


@dataclass(frozen=True, kw_only=True)
class MonitoringParameters:
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
