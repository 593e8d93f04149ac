"""What the header of a trained adapter says: sd-scripts' `ss_*` and Stability AI's modelspec."""

from __future__ import annotations

from loramerge.errors import UsageError
from loramerge.families import Family

__all__ = ["training_header"]

# Source: the model specification 1.0.1 of Stability AI, and sd-scripts' sai_model_spec (48d368fa)
_ARCHITECTURES = {
    "sd15": "stable-diffusion-v1",
    "sd21": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
    "tiny": "loramerge-tiny",
    "flux1": "flux-1",
    "sd3": "stable-diffusion-3",
}
_WITH_V = {"sd21": "stable-diffusion-v2-768-v"}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": None,
                "flow_prediction": None}  # fmt: skip


def training_header(family: Family | None, prediction: str | None = None) -> dict[str, str]:
    """Return the entries that follow from the base.

    `ss_network_*` and `ss_base_model_version` are added when a kohya file is written.

    Args:
        prediction: what a diffusers scheduler calls `prediction_type`, or None if it is not known.

    Raises:
        UsageError: if the prediction is none that there is.
    """
    if prediction is not None and prediction not in _PREDICTIONS:
        raise UsageError(
            "no such prediction type", expected=", ".join(_PREDICTIONS), found=prediction
        )
    header = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "ss_training_comment": "trained by loramerge",
    }
    if family is not None and family.name in _ARCHITECTURES:
        name = _ARCHITECTURES[family.name]
        if prediction == "v_prediction":
            name = _WITH_V.get(family.name, name)
        header["modelspec.architecture"] = f"{name}/lora"
    spelled = _PREDICTIONS.get(prediction or "")
    if spelled:
        header["modelspec.prediction_type"] = spelled
    if prediction == "v_prediction" and family is not None:
        header["ss_v_parameterization"] = "True"
        if family.name == "sd21":
            header["ss_base_model_version"] = "sd_v2_v"
    return header
