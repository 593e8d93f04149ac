"""The header of a trained adapter: sd-scripts' `ss_*` and Stability AI's modelspec.

Source: the model specification 1.0.1 of Stability AI, and sd-scripts' `sai_model_spec.py` (48d368fa).
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.adapter import Adapter, Delta, Info, Site
from loramerge.dialects.detection import NO_FAMILY, Detection
from loramerge.errors import UsageError
from loramerge.families import Family
from loramerge.train.lora.names import NAMING

__all__ = ["trained_adapter", "training_header"]

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": None,
                "flow_prediction": None}  # fmt: skip


def trained_adapter(
    deltas: Mapping[Site, Delta],
    detection: Detection,
    prediction: str | None,
    metadata: Mapping[str, str],
) -> Adapter:
    """Return the adapter of trained deltas, with its header.

    Args:
        prediction: see `training_header`.
        metadata: further entries of the header.

    Raises:
        UsageError: if this prediction type does not exist.
    """
    header = training_header(detection.family, prediction) | dict(metadata)
    dialects: dict[str, int] = {}
    if detection.naming is None:
        dialects = {NAMING.name: len(deltas)}
        header |= [NO_FAMILY]
    return Adapter(deltas, info=Info(detection=detection, metadata=header, dialects=dialects))


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
