"""The header of a trained adapter: sd-scripts' `ss_*` and Stability AI's modelspec.

Source: the model specification 1.0.1 of Stability AI, and sd-scripts' `sai_model_spec.py` (48d368fa).
"""

from __future__ import annotations

from loramerge.errors import UsageError
from loramerge.families import Family

__all__ = ["training_header"]

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": None,
                "flow_prediction": None}  # fmt: skip


def training_header(family: Family | None, prediction: str | None = None) -> dict[str, str]:
    """Return the entries that follow from the base.

    `ss_network_*` and `ss_base_model_version` are added when a kohya file is written.

    Args:
        prediction: `prediction_type` of a diffusers scheduler; None if it is not known.

    Raises:
        UsageError: if this prediction type does not exist.
    """
    if prediction is not None and prediction not in _PREDICTIONS:
        raise UsageError(
            f"{prediction!r} is not a prediction type", expected=", ".join(_PREDICTIONS)
        )
    header = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "ss_training_comment": "trained by loramerge",
    }
    words = family.metadata if family is not None else None
    special = words.v_prediction if words and prediction == "v_prediction" else None
    if words is not None and words.architecture is not None:
        header["modelspec.architecture"] = f"{special[0] if special else words.architecture}/lora"
    spelled = _PREDICTIONS.get(prediction or "")
    if spelled:
        header["modelspec.prediction_type"] = spelled
    if prediction == "v_prediction" and family is not None:
        header["ss_v_parameterization"] = "True"
    if special is not None:
        header["ss_base_model_version"] = special[1]
    return header
