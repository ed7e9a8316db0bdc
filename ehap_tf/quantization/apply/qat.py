"""`quantize`: from a trained float model to a calibrated model under emulated quantization."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.graph import kept_random_state
from ehap_tf.models.keras3 import either_keras
from ehap_tf.quantization.apply.batch_norm_statistics import reestimate_batch_norm
from ehap_tf.quantization.apply.bias_correction import correct_biases
from ehap_tf.quantization.apply.calibration import CALIBRATION_EXAMPLES, calibrate
from ehap_tf.quantization.apply.kernel_rounding import LARGEST_SYSTEM, KernelRounding
from ehap_tf.quantization.apply.side_by_side import Mend, SideBySide, examples_in_memory
from ehap_tf.quantization.integer_rules.flat_graph import output_layers, rebuild
from ehap_tf.quantization.integer_rules.wrappers import (
    NAME_PREFIX,
    EhapQuantizeWrapper,
    unwrapped,
)
from ehap_tf.quantization.plan.layout import EhapQuantizeLayoutTransform
from ehap_tf.quantization.plan.quantization_plan import QuantizationPlan
from ehap_tf.quantization.plan.registry import EhapQuantizeRegistry
from ehap_tf.quantization.plan.scheme import quantization_scope
from ehap_tf.quantization.tflite.conversion import require_sixteen_bit_kernels
from ehap_tf.quantization.tflite.finite import require_finite_weights
from ehap_tf.quantization.tflite.inputs import input_batches
from ehap_tf.quantization.tflite.islands import require_convertible

METHODS = ("qat", "ptq")
ROUNDINGS = ("nearest", "gptq")


@kept_random_state()
@either_keras(None)
def quantize(
    model: tf_keras.Model,
    method: str = "qat",
    weight_bits: int = 8,
    activation_bits: int = 8,
    representative_data: Any = None,
    *,
    act_percentile: float = 100.0,
    allow_float: bool = False,
    reestimate: bool = False,
    bias_correction: bool | None = None,
    rounding: str = "nearest",
    plan: QuantizationPlan | None = None,
) -> tf_keras.Model:
    """Returns a twin of `model` that computes with the numbers of the integer file.

    The twin is a trainable tf_keras model (float weights, quantized in every forward pass, the
    straight-through gradient), not compiled, and takes batches of any size. `model` stays as it is.
    A Keras 3 model has a tf_keras twin too: TFMOT, whose wrappers train, knows no Keras 3.

    The outputs are called as those of `model`, so that its losses and labels by name serve the twin
    as well. An output that is quantized by a layer of its own has the name of that, which ends in
    `_quantize`: one that `allow_float` keeps in float, an average that no layer follows.

    A layer or a nested model that is called several times becomes a copy for each call, as each has
    scales of its own in the file: their weights are equal at first, and train apart.

    Args:
        model: a trained Functional or Sequential model; nested models, any dtype policy. What is
            called with `training=False` stays in inference mode, and a BatchNorm there does not
            train.
        method: "qat", to be trained further, or "ptq", to be exported as it is; "ptq" must be
            given data.
        weight_bits: 8, or 4 for all kernels but those of `Conv2DTranspose`.
        activation_bits: 8, or 16 for networks whose outputs 8 bits are too coarse for, such as
            those of sound: symmetric, with kernels of 8 bits, in a file of larger tensors that
            takes and gives 16 bits. Not all operators exist so, and a trial conversion, which
            takes seconds, finds out which are missing.
        representative_data: `(x, y)` or `(x,)` arrays, an array, or a batched `tf.data.Dataset` of
            inputs or of (inputs, labels), preprocessed as for `model`; several inputs are a list of
            arrays or a dict in the place of `x`. The first 2,048 examples, however they are
            batched, set the ranges of the activations, see `calibrate`, which reads more when it
            is called on the result. None leaves the ranges to the first batches of training, which
            they follow quickly; such a model cannot be exported before.
        act_percentile: share in percent of an activation's values, over all those examples, that
            its range holds; 100 takes the extremes, a little less clips outliers.
        allow_float: keep layers without an integer kernel in float, instead of refusing them. What
            they read is quantized all the same, the inputs too: none may be ids to be looked up.
            Each is converted alone first, which takes seconds: not all that Keras computes runs in
            TFLite.
        reestimate: average BatchNorm's statistics over the representative data under quantization,
            with dropout, noise and augmentation off.
        bias_correction: take out the mean error that quantization leaves in each channel, layer by
            layer where that brings the layer's quantized output nearer to the float model's, and
            only if it brings the model's outputs nearer, see `correct_biases`. None does it for
            "ptq". With True a warning names the layers that have neither a bias nor a BatchNorm to
            take it from.
        rounding: of the kernels of "ptq". "nearest" rounds each weight for itself, with the step at
            which the largest of its channel is the last integer. "gptq" rounds one after the other,
            and adjusts those that are left so that the layer's outputs of the representative data
            stay near to the float model's, with steps that are chosen for it, see `KernelRounding`.
            It takes the kernels of all convolutions and Dense layers; the slopes of a PReLU and
            constants are rounded to nearest, and so is a kernel whose filters have more than 8,192
            inputs, with a warning.
        plan: from `plan_quantization`, perhaps edited. It says what `weight_bits`,
            `activation_bits`, `act_percentile` and `allow_float` say otherwise.

    Example:
        >>> images = train_images[:512]
        >>> qat = ehap.quantize(model, "ptq", 4, representative_data=images, rounding="gptq")
        >>> ehap.export_tflite(qat, "model_int4.tflite")

    Raises:
        TypeError: `model` is neither Functional nor Sequential, or the data is of another form,
            such as a generator.
        ValueError: a layer has no integer kernel, or none of 16 bits if that is wanted, or none in
            float that TFLite can run, needs the exact numbers of an input, or is quantized
            already, a weight or an activation is NaN or
            infinite, the model takes inputs of any size, the plan is of another model, or an
            argument is outside its values, such as a list of batches for data.
    """
    _require_agreeing(method, rounding, reestimate or bias_correction, representative_data)
    settings = QuantizationPlan(
        (), weight_bits, activation_bits, act_percentile, allow_float=allow_float
    )
    if plan is not None and settings != QuantizationPlan(()):
        raise ValueError(
            "plan says it all: leave weight_bits, activation_bits, act_percentile and allow_float "
            f"out, or give them to plan_quantization. Received: a plan, {weight_bits=}, "
            f"{activation_bits=}, {act_percentile=}, {allow_float=}"
        )
    with quantization_scope():
        flat, configs, decided = rewritten(model, settings, plan)
        qat = wrap(flat, configs, model.output_names)
    if decided.activation_bits > 8:
        require_sixteen_bit_kernels(qat)
    if representative_data is not None:
        if reestimate:
            reestimate_batch_norm(qat, _batches(qat, representative_data))
        calibrate(qat, representative_data)
        corrects = method == "ptq" if bias_correction is None else bias_correction
        if corrects or rounding == "gptq":
            _mend(qat, representative_data, rounding, corrects, warn=bool(bias_correction))
    return qat


def _require_agreeing(method: str, rounding: str, improves: Any, representative_data: Any) -> None:
    """Checks arguments of `quantize` against each other; `improves` what needs data."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}. Received: {method!r}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {ROUNDINGS}. Received: {rounding!r}")
    if rounding != "nearest" and method != "ptq":
        raise ValueError(
            'rounding goes with method="ptq": training rounds to nearest at every step. '
            f"Received: rounding={rounding!r}, method={method!r}"
        )
    if improves and representative_data is None:
        raise ValueError(
            "representative_data is needed for reestimate and bias_correction. Received: None"
        )
    if method == "ptq" and representative_data is None:
        raise ValueError(
            'representative_data is needed for method="ptq", a few hundred inputs suffice. '
            "Received: None"
        )


def rewritten(
    model: tf_keras.Model, settings: QuantizationPlan, plan: QuantizationPlan | None = None
) -> tuple[tf_keras.Model, Mapping[str, Mapping[str, Any]], QuantizationPlan]:
    """The operators of the file as a float model, the config of each that is quantized, the plan.

    Args:
        model: to be quantized.
        settings: what the plan is made by, without layers.
        plan: one that was made before, which is followed instead.
    """
    _require_fixed_size(model)
    layout = EhapQuantizeLayoutTransform(EhapQuantizeRegistry(plan or settings))
    flat = layout.rewritten(model)
    decided = layout.decided(flat)
    if plan is not None:
        plan.require_fits(decided)
        decided = plan
    configs = {name: {"quantize_config": config} for name, config in layout.configs(flat, decided)}
    require_finite_weights(model)
    in_float = [layer.name for layer in decided.layers if layer.output == "float"]
    require_convertible(flat, in_float, configs)
    return flat, configs, decided


def _mend(
    qat: tf_keras.Model, representative_data: Any, rounding: str, corrects: bool, warn: bool
) -> None:
    """Rounds the kernels for the data, corrects the biases, and sets the ranges anew."""
    batches = list(input_batches(qat, representative_data, examples_in_memory(qat)))
    inputs = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    kernels = KernelRounding(intercept=corrects)
    mends: list[Mend] = [kernels] if rounding == "gptq" else []
    if corrects:
        uncorrected = correct_biases(qat, inputs, mends)
    else:
        uncorrected = ()
        SideBySide(qat).walk(inputs, mends)
    # The ranges of what is corrected.
    calibrate(qat, representative_data)
    if warn and uncorrected:
        _warn(
            qat,
            "bias_correction left these layers out, which have neither a bias nor a BatchNorm",
            uncorrected,
        )
    if kernels.skipped:
        _warn(
            qat,
            'rounding="gptq" rounded the kernels of these layers to nearest, whose filters have '
            f"more than {LARGEST_SYSTEM} inputs",
            kernels.skipped,
        )


def _warn(qat: tf_keras.Model, what: str, names: Sequence[str]) -> None:
    called = ", ".join(unwrapped(qat.get_layer(name)).name for name in names)
    warnings.warn(f"{what}: {called}", RuntimeWarning, stacklevel=6)


def _require_fixed_size(model: tf_keras.Model) -> None:
    for tensor in getattr(model, "inputs", None) or ():
        if None in tensor.shape[1:]:
            raise ValueError(
                "model must take inputs of one size, because its file does. Received: an input of "
                f"shape {tuple(tensor.shape)}. Clone it with a size, twin = "
                "tf_keras.models.clone_model(model, tf_keras.Input((height, width, channels))), "
                "and give it the weights, twin.set_weights(model.get_weights())."
            )


def wrap(
    flat: tf_keras.Model,
    configs: Mapping[str, Mapping[str, Any]],
    output_names: Sequence[str],
) -> tf_keras.Model:
    """Puts each layer into TFMOT's wrapper, as `quantize_apply` does.

    In one pass over the graph; `quantize_apply` makes five copies of the model, and cannot annotate
    layers with several inputs. The layers themselves are used: `flat` is nobody else's. The
    wrappers of the outputs are called by `output_names`, if these are not taken.
    """
    wrapped = {layer.name: f"{NAME_PREFIX}{layer.name}" for layer in flat.layers}
    taken = {wrapped[layer.name] if layer.name in configs else layer.name for layer in flat.layers}
    of_outputs: dict[str, str] = {}
    for name, layer in zip(output_names, output_layers(flat), strict=True):
        if name not in taken:
            of_outputs.setdefault(layer.name, name)
    names = wrapped | of_outputs

    def visit(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if layer.name not in configs:
            return layer(*args, **kwargs)
        config = configs[layer.name]["quantize_config"]
        # Not in the global dtype policy, which the layer does not follow either.
        wrapper = EhapQuantizeWrapper(layer, config, dtype="float32", name=names[layer.name])
        # Keras would translate the wrapper's Python for each of them, half of the whole time; no
        # layer with an integer kernel needs it.
        return tf.autograph.experimental.do_not_convert(wrapper)(*args, **kwargs)

    return rebuild(flat, visit)


def _batches(qat: tf_keras.Model, representative_data: Any) -> Iterator[list[np.ndarray]]:
    return input_batches(qat, representative_data, CALIBRATION_EXAMPLES, "representative_data")
