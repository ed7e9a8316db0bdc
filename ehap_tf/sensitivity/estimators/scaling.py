"""Scale factors that keep 16-bit gradients and products between underflow and overflow."""

from __future__ import annotations

import numpy as np

_SMALLEST, _LARGEST = 2.0**-24, 2.0**15


class Scales:
    """The factors of the loss and of the probe vector, adapted to what overflows.

    float16 represents magnitudes from 6e-8 to 65504. The inner gradient is computed from the loss
    times `loss_scale`, the product from the probe times `probe_scale`; both are divided out in
    float32. An overflow halves the guilty factor, an underflow (a product that is all zero)
    doubles one, and after `patience` good calls both grow, since larger is more accurate. While a
    probe is repeated no factor goes back to where it overflowed, so that repeats end.

    Args:
        adaptive: False keeps both at 1, for precisions with the range of float32.
        patience: good calls before growth.
    """

    def __init__(self, adaptive: bool, patience: int = 16) -> None:
        self.adaptive = adaptive
        self.loss_scale = 2.0**12 if adaptive else 1.0
        self.probe_scale = 1.0
        self.repeated = 0
        self._patience = patience
        self._good = 0
        self._forget_overflows()

    def values(self) -> np.ndarray:
        """(loss_scale, probe_scale)."""
        return np.array([self.loss_scale, self.probe_scale])

    def update(
        self, gradient_finite: bool, products: np.ndarray, weightless: bool = False
    ) -> np.ndarray:
        """Learns from a call.

        Args:
            gradient_finite: whether the scaled inner gradient was finite.
            products: per probe, shape (probes, size).
            weightless: the examples do not count in the loss, so that zeros are right.

        Returns:
            For each probe whether its result can be used; the others have to be repeated.

        Raises:
            FloatingPointError: no factor gives a usable result.
        """
        finite = np.isfinite(products).all(axis=1) & gradient_finite
        if not self.adaptive:
            if not finite.all():
                raise FloatingPointError(
                    "the result is NaN or infinite for this model and data; look for very large "
                    "weights or inputs, or use precision='bf16' or 'fp32' in place of 'fp16'"
                )
            return finite
        vanished = finite & (products == 0).all(axis=1) & (not weightless)
        usable = finite & ~vanished
        if usable.any():
            self._forget_overflows()
        if not gradient_finite:
            self._loss_limit = self.loss_scale
            self.loss_scale = _halved(self.loss_scale)
        elif not finite.all():
            self._probe_limit = self.probe_scale
            self.probe_scale = _halved(self.probe_scale)
        elif vanished.any():
            self._grow_below_the_limits()
        if usable.all():
            self._good += 1
            if self._good % self._patience == 0:
                self.loss_scale = min(self.loss_scale * 2, _LARGEST)
                self.probe_scale = min(self.probe_scale * 2, _LARGEST)
        else:
            self._good = 0
            self.repeated += int((~usable).sum())
        return usable

    def _forget_overflows(self) -> None:
        """Another probe may do with factors that were too large for the last one."""
        self._loss_limit = self._probe_limit = 2 * _LARGEST

    def _grow_below_the_limits(self) -> None:
        if 2 * self.probe_scale < self._probe_limit:
            self.probe_scale *= 2
        elif 2 * self.loss_scale < self._loss_limit:
            self.loss_scale *= 2
        else:
            raise FloatingPointError(
                "float16 gives zero for the curvature of some examples with every loss scale that "
                "does not overflow: they have none, or too little; use precision='bf16' or "
                "'fp32', or a larger batch_size"
            )


def _halved(scale: float) -> float:
    if scale / 2 < _SMALLEST:
        raise FloatingPointError(
            "float16 cannot represent the curvature of this model and data with any loss scale; "
            "use precision='bf16' or 'fp32'"
        )
    return scale / 2
