"""The slim model: the layers of the original with the channels that a plan keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from ehap_tf.channels import (
    Ids,
    ScatterChannels,
    TracedCall,
    weight_axes,
)
from ehap_tf.models.keras3 import either_keras
from ehap_tf.pruning.plan import implant_layers
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.surgery.rebuild import ByPlan


@either_keras()
def prune(model: tf_keras.Model, plan: PruningPlan) -> tf_keras.Model:
    """A new, smaller model without the filters that the plan removes.

    Layer names, dtype policies, regularizers, constraints and trainable flags stay. For every
    input the output equals that of `mask(model, plan)` up to float rounding. A Sequential model
    stays one, unless 1x1 filters stand beside the others in it. The model given is left untouched;
    the new one is not compiled.

    Args:
        model: a Functional or Sequential model, the one that the plan was made for.
        plan: what to keep.

    Raises:
        TypeError: the model is subclassed, or `plan` is no plan.
        ValueError: the plan does not fit the model.
    """
    return _Surgeon(model, plan).rebuild(model)


class _Surgeon(ByPlan):
    def width(self, ids: Ids) -> int:
        return int(self._alive[ids].sum())

    def connect(self, tensor: Any, arriving: Ids, wanted: Ids, name: str) -> Any:
        """Puts a branch that lacks channels which the consumer wants into their places."""
        have, want = self._alive[arriving], self._alive[wanted]
        if np.array_equal(have, want):
            return tensor
        place = np.cumsum(want) - 1
        policy = getattr(tensor, "dtype", None)
        layer = ScatterChannels(
            place[have].tolist(),
            int(want.sum()),
            name=self.fresh_name(name),
            dtype=policy.name if policy else None,
        )
        return layer(tensor)

    def config(self, call: TracedCall) -> dict[str, Any]:
        config = super().config(call)
        for argument, value in call.effect.config.items():
            config[argument] = (
                value(self._alive) if callable(value) else int(self._alive[value].sum())
            )
        return config

    def weights(self, call: TracedCall) -> list[Any]:
        axes_of = weight_axes(call)
        sliced = []
        for weight, value in zip(call.layer.weights, call.layer.get_weights(), strict=True):
            for axis, ids in enumerate(axes_of.get(id(weight), ())):
                if ids is not None:
                    value = np.take(value, np.flatnonzero(self._alive[ids]), axis)
            sliced.append(value)
        return sliced

    def apply(self, call: TracedCall, node: Any, tensors: list[Any]) -> list[Any]:
        implanted = self._plan.implanted.get(call.path, ())
        if not len(implanted):
            return super().apply(call, node, tensors)
        return [self._apply_with_implants(call, node, tensors[0])]

    def _apply_with_implants(self, call: TracedCall, node: Any, tensor: Any) -> Any:
        """The k x k filters and the 1x1 filters side by side, then channels in their old order."""
        kept, implanted = (
            np.asarray(part[call.path]) for part in (self._plan.kept, self._plan.implanted)
        )
        config, weights, name = self.config(call), self._by_name(call), call.layer.name
        stays = np.flatnonzero(self._alive[call.effect.outputs[0]])
        small_config = implant_layers.config(config, len(implanted))
        small_weights = implant_layers.weights(
            weights, np.searchsorted(stays, implanted), self._plan.implant_init
        )
        shape = tuple(node.keras_inputs[0].shape)
        cropped = implant_layers.crop(tensor, call.layer, shape, self.fresh_name)
        if not len(kept):
            # The 1x1 filters are all there is, and take the name of the layer.
            small = self.make_layer(call, {**small_config, "name": name}, small_weights)
            return small(cropped)
        small_config["name"] = self.fresh_name(f"{name}_implant")
        large = self.make_layer(
            call,
            {**config, "filters": len(kept)},
            [value[..., np.searchsorted(stays, kept)] for value in weights.values()],
        )
        small = self.make_layer(call, small_config, small_weights)
        policy = call.layer.dtype_policy
        concat = tf_keras.layers.Concatenate(
            name=self.fresh_name(f"{name}_implant_concat"), dtype=policy
        )
        both = concat([large(tensor), small(cropped)])
        order = np.searchsorted(stays, np.concatenate([kept, implanted]))
        if (np.diff(order) > 0).all():
            return both
        return ScatterChannels(
            order.tolist(),
            len(stays),
            name=self.fresh_name(f"{name}_implant_order"),
            dtype=policy,
        )(both)

    def _by_name(self, call: TracedCall) -> dict[str, Any]:
        """The sliced weights of a convolution: kernel, then bias where there is one."""
        return dict(zip(("kernel", "bias"), self.weights(call), strict=False))

    def arguments(
        self, call: TracedCall, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if call.effect.arguments is None:
            return args, kwargs
        return call.effect.arguments(self._alive, args, kwargs)

    def skips(self, call: TracedCall) -> bool:
        return call.effect.pass_through
