"""INT8: the quantization scheme, the QAT model, the TFLite file and what it is worth."""

from ehap_tf.quantization.batch_norm import FreezeBatchNorm, freeze_batch_norm
from ehap_tf.quantization.builder import GraphBuilder
from ehap_tf.quantization.calibration import calibrate
from ehap_tf.quantization.configs import EhapQuantizeConfig
from ehap_tf.quantization.correction import round_biases
from ehap_tf.quantization.evaluate import TFLiteModel, evaluate_tflite, measure_latency_ms
from ehap_tf.quantization.export import export_float_tflite, export_tflite
from ehap_tf.quantization.integer_kernels import IntegerKernel
from ehap_tf.quantization.metadata import Normalization, read_metadata
from ehap_tf.quantization.persistence import load_qat, save_qat
from ehap_tf.quantization.qat import plan_quantization, quantize, require_quantizable
from ehap_tf.quantization.quality import LayerQuality, QuantizationReport, quantization_report
from ehap_tf.quantization.quantization_plan import LayerQuantization, QuantizationPlan
from ehap_tf.quantization.rewriting import register_integer_rule
from ehap_tf.quantization.scheme import EhapQuantizeScheme, quantization_scope
from ehap_tf.quantization.tflite_file import TensorSpec, TFLiteFile, inspect_tflite

__all__ = [
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
    "evaluate_tflite",
    "export_float_tflite",
    "export_tflite",
    "freeze_batch_norm",
    "inspect_tflite",
    "load_qat",
    "measure_latency_ms",
    "plan_quantization",
    "quantization_report",
    "quantization_scope",
    "quantize",
    "read_metadata",
    "register_integer_rule",
    "require_quantizable",
    "round_biases",
    "save_qat",
]
