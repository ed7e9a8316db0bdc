"""Second-order filter pruning and full-integer export for trained Keras CNNs.

Names are imported on first use, but for the layers that a slim model is made of: Keras has to
know them to load one.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
from typing import Any

# Python sets argv[0] to "-m" while it locates the module of `python -m ehap_tf.main`, and to the
# path of the script in the console script: the command checks its flags and quietens TensorFlow
# before anything loads it.
_command = sys.argv[0] if sys.argv else ""
if _command != "-m" and pathlib.PurePath(_command).stem != "ehap-tf":
    from ehap_tf.channels import ScatterChannels as ScatterChannels
    from ehap_tf.models.keras3 import register_layers

    register_layers()

__version__ = "0.2.0.dev0"

_HOMES = {
    "ScatterChannels": "ehap_tf.channels",
    "build_model": "ehap_tf.models",
    "load_model": "ehap_tf.models",
    "save_model": "ehap_tf.models",
    "to_keras3": "ehap_tf.models",
    "to_tf_keras": "ehap_tf.models",
    "load_dataset": "ehap_tf.data",
    "FilterScores": "ehap_tf.sensitivity",
    "criterion_names": "ehap_tf.criteria",
    "rank_filters": "ehap_tf.sensitivity",
    "oracle_importance": "ehap_tf.sensitivity",
    "register_criterion": "ehap_tf.criteria",
    "PruningCallback": "ehap_tf.pruning",
    "PruningPlan": "ehap_tf.pruning",
    "PruningState": "ehap_tf.pruning",
    "plan_pruning": "ehap_tf.pruning",
    "prune": "ehap_tf.pruning",
    "mask": "ehap_tf.pruning",
    "residual_blocks": "ehap_tf.pruning",
    "rank_blocks": "ehap_tf.pruning",
    "remove_blocks": "ehap_tf.pruning",
    "recalibrate": "ehap_tf.pruning",
    "compensate": "ehap_tf.pruning",
    "repair": "ehap_tf.pruning.repair",
    "count_parameters": "ehap_tf.pruning",
    "count_macs": "ehap_tf.pruning",
    "register_channel_rule": "ehap_tf.channels",
    "register_integer_rule": "ehap_tf.quantization",
    "plan_quantization": "ehap_tf.quantization",
    "QuantizationPlan": "ehap_tf.quantization",
    "IntegerKernel": "ehap_tf.quantization",
    "quantize": "ehap_tf.quantization",
    "require_quantizable": "ehap_tf.quantization",
    "save_qat": "ehap_tf.quantization",
    "load_qat": "ehap_tf.quantization",
    "export_tflite": "ehap_tf.quantization",
    "export_float_tflite": "ehap_tf.quantization",
    "evaluate_tflite": "ehap_tf.quantization",
    "measure_latency_ms": "ehap_tf.quantization",
    "quantization_report": "ehap_tf.quantization",
    "QuantizationReport": "ehap_tf.quantization",
    "LayerQuality": "ehap_tf.quantization",
    "calibrate": "ehap_tf.quantization",
    "round_biases": "ehap_tf.quantization",
    "FreezeBatchNorm": "ehap_tf.quantization",
    "freeze_batch_norm": "ehap_tf.quantization",
    "EhapQuantizeScheme": "ehap_tf.quantization",
    "EhapQuantizeConfig": "ehap_tf.quantization",
    "quantization_scope": "ehap_tf.quantization",
    "Normalization": "ehap_tf.quantization",
    "TFLiteFile": "ehap_tf.quantization",
    "TFLiteModel": "ehap_tf.quantization",
    "TensorSpec": "ehap_tf.quantization",
    "inspect_tflite": "ehap_tf.quantization",
    "read_metadata": "ehap_tf.quantization",
    "MicroCheck": "ehap_tf.budget",
    "verify_micro": "ehap_tf.budget",
    "EthosEstimate": "ehap_tf.budget",
    "compile_for_ethos_u": "ehap_tf.budget",
    "LatencyTable": "ehap_tf.budget",
    "measure_operators": "ehap_tf.budget",
    "export_c": "ehap_tf.budget",
    "compress": "ehap_tf.pipeline.compress",
    "finetune": "ehap_tf.pipeline.training.finetuning",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ehap_tf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
