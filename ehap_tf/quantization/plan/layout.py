"""Where the integers are: which layer's output is quantized and which stays inside an operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Set
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_layout_transform as default_layout,
)
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)

from ehap_tf.graph import (
    is_plain_batch_norm,
    made_by,
    producers,
)
from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.canonical import canonical_model
from ehap_tf.quantization.integer_rules.flat_graph import rebuild
from ehap_tf.quantization.integer_rules.integer_kernels import (
    averages_on_grid,
    integer_kernel,
    keeps_grid,
)
from ehap_tf.quantization.integer_rules.integer_operators import EhapOperator
from ehap_tf.quantization.integer_rules.own_layers import EhapFloatLayer, EhapQuantizeLayer
from ehap_tf.quantization.plan.configs import EhapQuantizeConfig
from ehap_tf.quantization.plan.exact_inputs import require_no_exact_inputs
from ehap_tf.quantization.plan.passes import (
    attach_batch_norms,
    drop_out_behind_relus,
    is_plain_relu,
    reading_layers,
)
from ehap_tf.quantization.plan.quantization_plan import LayerQuantization, QuantizationPlan
from ehap_tf.quantization.plan.quantizers import EhapActivationQuantizer
from ehap_tf.quantization.plan.registry import EhapQuantizeRegistry, spelled_layer
from ehap_tf.quantization.plan.selecting_layers import selects_values

NOT_WRAPPED = (tf_keras.layers.InputLayer, QuantizeLayer)


class EhapQuantizeLayoutTransform(default_layout.Default8BitQuantizeLayoutTransform):
    """Rewrites a model into the operators of the integer file and plans their quantization.

    TFMOT's own transforms match chains of layers by pattern; they refuse, or leave in float,
    whatever stands in no pattern (a BatchNorm before its convolution, Multiply, Rescaling). Here
    the whole graph is rewritten first, so that two rules suffice: a BatchNorm belongs to the
    convolution that alone feeds it, and a ReLU to the operator that alone feeds it. Every other
    output is quantized, or stays on its input's grid.

    Args:
        registry: says how each layer is quantized.
    """

    def __init__(self, registry: EhapQuantizeRegistry) -> None:
        self._registry, self._settings = registry, registry.settings

    def apply(
        self, model: tf_keras.Model, layer_quantize_map: Mapping[str, Mapping[str, Any]]
    ) -> tuple[tf_keras.Model, dict[str, dict[str, Any]]]:
        """Returns the rewritten model and the `QuantizeConfig` of each of its layers.

        An `EhapQuantizeConfig` that a layer was annotated with is kept.

        Raises:
            TypeError: a layer was annotated with another kind of `QuantizeConfig`.
            ValueError: a layer has no integer kernel, or looks an input up, or one that was
                annotated has become other layers.
        """
        annotated = {
            name: entry["quantize_config"]
            for name, entry in layer_quantize_map.items()
            if entry.get("quantize_config")
        }
        flat = self.rewritten(model, annotated)
        plan = self.decided(flat, annotated)
        return flat, {n: {"quantize_config": c} for n, c in self.configs(flat, plan, annotated)}

    def rewritten(
        self, model: tf_keras.Model, annotated: Mapping[str, Any] | None = None
    ) -> tf_keras.Model:
        """The operators of the file as a float model, with a `QuantizeLayer` where none is wrapped.

        Args:
            model: the float model.
            annotated: layer -> the config that the caller gives it.

        Raises:
            TypeError: as `apply`.
            ValueError: as `apply`; a pattern of `keep_float` fits no layer.
        """
        annotated = annotated or {}
        flat = canonical_model(model, self._settings.keep_float)
        for layer in flat.layers:
            if isinstance(layer, EhapOperator):
                layer.round_constants()
        require_no_exact_inputs(model, flat, self._is_float)
        flat = drop_out_behind_relus(flat)
        flat = attach_batch_norms(flat, self._quantize_tensor)
        flat = self._surround_float_layers(flat)
        _require_own_configs(annotated, flat)
        flat = _keep_limits(flat, annotated.keys())
        return self._round_averages(flat, annotated.keys())

    def decided(
        self, flat: tf_keras.Model, annotated: Mapping[str, Any] | None = None
    ) -> QuantizationPlan:
        """How each layer of a rewritten model is quantized.

        Raises:
            ValueError: a layer has no integer kernel.
        """
        readers, sources = reading_layers(flat), producers(flat)
        names = (annotated or {}).keys()
        layers = [self._decided(layer, readers, sources, names) for layer in _called(flat)]
        kept = tuple(self._settings.keep_float)
        return dataclasses.replace(self._settings, layers=tuple(layers), keep_float=kept)

    def _decided(
        self,
        layer: tf_keras.layers.Layer,
        readers: Mapping[str, list[Any]],
        sources: Mapping[str, Any],
        annotated: Set[str],
    ) -> LayerQuantization:
        if layer.name in annotated:
            return LayerQuantization(layer.name, spelled_layer(layer), "own")
        if isinstance(layer, QuantizeLayer):
            return LayerQuantization(layer.name, "Quantize", "own")
        if self._is_float(layer):
            kept = isinstance(layer, EhapFloatLayer)
            of = spelled_layer(layer.layer if kept else layer)
            reason = "keep_float" if kept else "no integer kernel"
            return LayerQuantization(layer.name, of, "float", reason=reason)
        config, kernel = self._registry.get_quantize_config(layer), integer_kernel(layer)
        assert kernel is not None
        output, other = "own" if config.output == "observed" else "fixed", None
        if kernel.output == "exact":
            output = "exact"
        elif kernel.output == "grid":
            output, other = "input", sources[layer.name][0]
        elif _ends_inside_operator(layer, readers[layer.name]):
            other = readers[layer.name][0]
            output = "behind" if isinstance(other, QuantizeLayer) else "inside"
        elif config.output == "observed":
            other = _another_grid(layer, readers, annotated)
            output = "own" if other is None else "shared"
        return LayerQuantization(
            layer.name,
            spelled_layer(layer),
            output,
            getattr(other, "name", other) or "",
            config.weight_bits if config.weights else None,
            ("tensor" if kernel.scales == "tensor" else "channel") if config.weights else "",
        )

    def configs(
        self,
        flat: tf_keras.Model,
        plan: QuantizationPlan,
        annotated: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[str, EhapQuantizeConfig]]:
        """The layers of a rewritten model that are wrapped, each with its config by the plan.

        Raises:
            ValueError: the plan has 4 bits for a kernel that the file cannot hold in them.
        """
        for layer, entry in zip(_called(flat), plan.layers, strict=True):
            if annotated and layer.name in annotated:
                yield layer.name, annotated[layer.name]
            elif not (isinstance(layer, NOT_WRAPPED) or entry.output == "float"):
                config = self._registry.get_quantize_config(layer)
                kernel = integer_kernel(layer)
                if entry.weight_bits == 4 and not (kernel and kernel.four_bits):
                    raise ValueError(
                        f"the plan must have 8 bits for layer {layer.name!r} ({entry.kind}), whose "
                        "kernel a file cannot hold in fewer. Received: 4"
                    )
                config.weight_bits = entry.weight_bits or config.weight_bits
                if entry.output not in ("own", "fixed"):
                    config.output = "none"
                yield layer.name, config

    def _is_float(self, layer: tf_keras.layers.Layer) -> bool:
        if isinstance(layer, EhapFloatLayer):
            return True
        return self._settings.allow_float and not (
            isinstance(layer, NOT_WRAPPED) or self._registry.supports(layer)
        )

    def _surround_float_layers(self, flat: tf_keras.Model) -> tf_keras.Model:
        """Puts a quantization behind every layer that stays in float.

        TFMOT's wrapper could do that too, but takes layers with a single tensor only.
        """
        if not any(self._is_float(layer) for layer in flat.layers):
            return flat

        readers, selecting = reading_layers(flat), self._selecting(flat)

        def visit(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            outputs = layer(*args, **kwargs)
            if not self._is_float(layer) or layer.name in selecting:
                return outputs
            if isinstance(layer, EhapFloatLayer) and all(
                isinstance(reader, EhapFloatLayer) for reader in readers[layer.name]
            ):
                return outputs  # From float to float nothing is rounded.
            return tf.nest.map_structure(
                lambda y: self._quantize_tensor(y) if y.dtype.is_floating else y, outputs
            )

        return rebuild(flat, visit)

    def _round_averages(self, flat: tf_keras.Model, annotated: Set[str]) -> tf_keras.Model:
        """Rounds averages that stay on their input's grid, as their integer kernels do.

        And gives that grid to what layers in float only move or select, so that it has one in the
        file too.

        The quantizer of that grid becomes a layer, which is called on the averages once more, never
        in training mode: there it rounds and does not follow their range.

        Args:
            flat: every tensor's grid is that of a `QuantizeLayer` or of a layer to be wrapped.
            annotated: layers with a quantizer of the caller's, whose grid stays theirs alone.
        """
        sources = producers(flat)
        by_name = {layer.name: layer for layer in flat.layers}
        grids: dict[str, str] = {}
        selecting = self._selecting(flat)
        for layer in flat.layers:
            if averages_on_grid(layer) or layer.name in selecting:
                (source,) = sources[layer.name]
                while keeps_grid(by_name[source]) or source in selecting:
                    (source,) = sources[source]
                if source not in annotated:
                    grids[layer.name] = source
        if not grids:
            return flat
        rounding = {source: self._grid_layer(by_name[source]) for source in set(grids.values())}

        def visit(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            y = layer(*args, **kwargs)
            if layer.name in rounding and rounding[layer.name] is not layer:
                y = rounding[layer.name](y)
            if layer.name in grids:
                pooled = layer_kind(layer) == "AveragePooling2D"
                y = rounding[grids[layer.name]](y, training=False, averages=pooled)
            return y

        return rebuild(flat, visit)

    def _selecting(self, flat: tf_keras.Model) -> set[str]:
        """The layers in float that only move or select numbers which have a grid."""
        sources, by_name = producers(flat), {layer.name: layer for layer in flat.layers}
        return {
            layer.name
            for layer in flat.layers
            if self._is_float(layer)
            and not any(isinstance(by_name[s], EhapFloatLayer) for s in sources[layer.name])
            and selects_values(layer)
        }

    def _grid_layer(self, layer: tf_keras.layers.Layer) -> QuantizeLayer:
        if isinstance(layer, QuantizeLayer):
            return layer
        (quantizer,) = self._registry.get_quantize_config(layer).get_output_quantizers(layer)
        return EhapQuantizeLayer(quantizer, name=f"{layer.name}_quantize")

    def _quantize_tensor(self, tensor: Any) -> Any:
        quantizer = EhapActivationQuantizer(
            self._settings.activation_bits, self._settings.act_percentile
        )
        node, index = made_by(tensor)
        name = f"{node.layer.name}_quantize"
        name = f"{name}_{index}" if index else name
        return EhapQuantizeLayer(quantizer, name=name)(tensor)


def _called(flat: tf_keras.Model) -> list[Any]:
    """The layers of a rewritten model but its inputs, in the order of a plan."""
    return [layer for layer in flat.layers if not isinstance(layer, tf_keras.layers.InputLayer)]


def _require_own_configs(annotated: Mapping[str, Any], flat: tf_keras.Model) -> None:
    """Checks the configs that layers were annotated with.

    Raises:
        TypeError: one says nothing about the integer file.
        ValueError: its layer has become other layers.
    """
    names = {layer.name for layer in flat.layers}
    for name, config in annotated.items():
        if not isinstance(config, EhapQuantizeConfig):
            raise TypeError(
                f"layer {name!r} must be annotated with an EhapQuantizeConfig, which the file is "
                f"written by, or without a config. Received: {type(config).__name__}"
            )
        if name not in names:
            raise ValueError(
                f"layer {name!r} must be annotated without a config: it becomes other layers in "
                "the file"
            )


def _ends_inside_operator(layer: tf_keras.layers.Layer, readers: list[Any]) -> bool:
    if len(readers) != 1:
        return False
    if isinstance(readers[0], QuantizeLayer):
        return True
    kernel = integer_kernel(layer)
    if kernel is None:
        return False
    if is_plain_relu(readers[0]):
        return kernel.ends_in_relu
    return kernel.multiplies and is_plain_batch_norm(readers[0])


def _keep_limits(flat: tf_keras.Model, annotated: Set[str]) -> tf_keras.Model:
    """Puts an identity convolution behind a ReLU whose upper limit another grid would not have.

    Elsewhere the limit is the end of the output's range, and costs nothing; 6 is an operator's own.
    """
    readers = reading_layers(flat)
    limited = {
        layer.name
        for layer in flat.layers
        if is_plain_relu(layer)
        and layer.max_value not in (None, 6.0)
        and layer.name not in annotated
        and _another_grid(layer, readers, annotated) is not None
    }
    if not limited:
        return flat
    builder = GraphBuilder(layer.name for layer in flat.layers)

    def visit(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        y = layer(*args, **kwargs)
        if layer.name not in limited:
            return y
        return builder.affine(y, 1.0, 0.0, f"{layer.name}_limit")

    return rebuild(flat, visit)


def _another_grid(layer: Any, readers: Mapping[str, list[Any]], annotated: Set[str]) -> Any:
    """The operator with one grid that an output goes to alone, perhaps moved on the way, or None.

    The file's operators then write on that grid; a range of its own would clip in the QAT model
    alone.
    """
    while len({id(reader) for reader in readers[layer.name]}) == 1:
        layer = readers[layer.name][0]
        kernel = integer_kernel(layer)
        if kernel is not None and kernel.output == "one_grid":
            return None if layer.name in annotated else layer
        if not keeps_grid(layer) or averages_on_grid(layer):
            break
    return None
