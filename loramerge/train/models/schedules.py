"""The noise schedule a base was trained with, from its configuration or from keys of its single file.

A schedule that is not known is refused: trained as noise, a model of another one is spoiled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from loramerge.errors import Setting, UsageError
from loramerge.families import Family

__all__ = ["PREDICTIONS", "config_of_keys", "predicting", "refuse_schedule"]

# word of the option → diffusers' name
PREDICTIONS: Mapping[str, str] = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}

# samplers of diffusers over the same ᾱ of a thousand steps: any of them tells the schedule
_DISCRETE = frozenset({
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler",
    "DDIMInverseScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler",
    "LCMScheduler", "TCDScheduler",
})  # fmt: skip
_FLOWS = frozenset({
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
})  # fmt: skip
# keys by which ComfyUI and others tell what a single file was trained with
_TELLS_V, _TELLS_ZERO_SNR = "v_pred", "ztsnr"
_EDM = ("edm_vpred", "edm_mean", "edm_std")


def refuse_schedule(config: Mapping[str, Any], *, flow: bool, file: Path) -> None:
    """Refuse the configuration of a scheduler that an architecture is not trained with.

    Args:
        config: as its scheduler_config.json has it.
        flow: True for a rectified flow, False for noise over discrete steps.

    Raises:
        UsageError: naming the scheduler.
    """
    name = str(config.get("_class_name", ""))
    of_flow = (
        bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"
    )
    continuous = config.get("timestep_type") == "continuous"
    if flow:
        right = name in _FLOWS or of_flow
    else:
        right = name in _DISCRETE and not of_flow and not continuous
    if right:
        return
    raise UsageError(
        "this scheduler is not of a noise schedule that this kind of model can be trained with",
        file=file,
        expected="the scheduler of a rectified flow"
        if flow
        else "DDPM's schedule, or a sampler of it",
        found=f"{name}, continuous times"
        if continuous
        else f"{name}, a flow"
        if of_flow
        else name or "no name",
        hint="if the base was trained otherwise, correct its scheduler/scheduler_config.json",
    )


def config_of_keys(
    keys: Collection[str], metadata: Mapping[str, str], file: Path, family: Family | None = None
) -> dict[str, Any]:
    """Return the schedule of a single file, as entries of a scheduler's configuration.

    Args:
        keys: of all its tensors.
        metadata: of its header; sd-scripts and others write `modelspec.prediction_type`, or an
            architecture that says it.

    Raises:
        UsageError: if it tells of a schedule that is not known here.
    """
    strange = sorted(key for key in keys if key.startswith(_EDM))
    if strange:
        raise UsageError(
            "this model was trained with the noise of EDM, which cannot be trained here",
            file=file,
            found=strange[0],
        )
    said = metadata.get("modelspec.prediction_type", "").lower()
    found: dict[str, Any] = {}
    if _TELLS_V in keys or said in ("v", "v_prediction", "v-prediction"):
        found["prediction_type"] = "v_prediction"
    elif said in ("epsilon", "eps"):
        found["prediction_type"] = "epsilon"
    elif said:
        raise UsageError(
            "its header names a prediction type that is not known", file=file, found=said,
            expected="epsilon or v", hint=("say what it predicts: ", Setting("prediction")),
        )  # fmt: skip
    elif family is not None and family.metadata.v_prediction is not None:
        named = metadata.get("modelspec.architecture")
        if named == family.metadata.v_prediction[0]:
            found["prediction_type"] = "v_prediction"
        elif named == family.metadata.architecture:
            found["prediction_type"] = "epsilon"
    if _TELLS_ZERO_SNR in keys:
        found["rescale_betas_zero_snr"] = True
    return found


def predicting(scheduler: Any, prediction: str | None, told: Mapping[str, Any] = {}) -> Any:
    """Return a scheduler with what its file tells, and with the prediction that was asked for.

    Args:
        prediction: a word of `PREDICTIONS`; None: as the base says.
        told: see `config_of_keys`.
    """
    changes = dict(told)
    if prediction is not None:
        changes["prediction_type"] = PREDICTIONS[prediction]
    return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler
