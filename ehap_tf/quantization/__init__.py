"""INT8: the quantization scheme, the QAT model, the TFLite file and what it is worth."""

from ehap_tf.quantization.apply.batch_norm_statistics import FreezeBatchNorm, freeze_batch_norm
from ehap_tf.quantization.apply.calibration import calibrate
from ehap_tf.quantization.apply.persistence import load_qat, save_qat
from ehap_tf.quantization.apply.planning import (
    noise_file,
    plan_quantization,
    require_quantizable,
    require_target_bytes,
)
from ehap_tf.quantization.apply.qat import quantize
from ehap_tf.quantization.apply.quality import LayerQuality, QuantizationReport, quantization_report
from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.integer_kernels import IntegerKernel
from ehap_tf.quantization.integer_rules.rewriting import register_integer_rule
from ehap_tf.quantization.plan.configs import EhapQuantizeConfig
from ehap_tf.quantization.plan.quantization_plan import LayerQuantization, QuantizationPlan
from ehap_tf.quantization.plan.scheme import EhapQuantizeScheme, quantization_scope
from ehap_tf.quantization.tflite.arena import ArenaPlan, plan_arena
from ehap_tf.quantization.tflite.biases import round_biases
from ehap_tf.quantization.tflite.conversion import export_float_tflite, export_tflite
from ehap_tf.quantization.tflite.evaluate import (
    TFLiteModel,
    classes,
    evaluate_tflite,
    measure_latency_ms,
)
from ehap_tf.quantization.tflite.metadata import Normalization, read_metadata
from ehap_tf.quantization.tflite.tflite_file import (
    TensorSpec,
    TFLiteFile,
    distinct_operators,
    inspect_tflite,
    operator_alone,
    operator_name,
    parse_tflite,
)

__all__ = [
    "ArenaPlan",
    "EhapQuantizeConfig",
    "EhapQuantizeScheme",
    "FreezeBatchNorm",
    "GraphBuilder",
    "IntegerKernel",
    "LayerQuality",
    "LayerQuantization",
    "Normalization",
    "QuantizationPlan",
    "QuantizationReport",
    "TFLiteFile",
    "TFLiteModel",
    "TensorSpec",
    "calibrate",
    "classes",
    "distinct_operators",
    "evaluate_tflite",
    "export_float_tflite",
    "export_tflite",
    "freeze_batch_norm",
    "inspect_tflite",
    "load_qat",
    "measure_latency_ms",
    "noise_file",
    "operator_alone",
    "operator_name",
    "parse_tflite",
    "plan_arena",
    "plan_quantization",
    "quantization_report",
    "quantization_scope",
    "quantize",
    "read_metadata",
    "register_integer_rule",
    "require_quantizable",
    "require_target_bytes",
    "round_biases",
    "save_qat",
]
