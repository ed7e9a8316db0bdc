"""How long the file of a planned network takes, before the network is trained."""

from __future__ import annotations

import pathlib
import tempfile

import tf_keras

from ehap_tf.budget import LatencyTable, measure_operators
from ehap_tf.progress import ProgressCallback
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.quantization import noise_file


class PredictedLatency:
    """Writes the integer file of a plan, with the weights that there are, and looks it up.

    What surgery makes of a plan, and the converter of that, is known to nobody else: where channels
    of a sum are set in place stands an operator or none.

    Args:
        model: that the plans are of.
        costs: of its operators; None measures them here.
        progress: called for each file.
        files: how many there will be, about.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        costs: LatencyTable | None,
        progress: ProgressCallback,
        files: int,
    ) -> None:
        self._model = model
        self._costs = costs or measure_operators(model)
        self._progress = progress
        self._files = files
        self._known: dict[str, float] = {}

    @property
    def device(self) -> str:
        """The name of the device."""
        return self._costs.device

    @property
    def whole_ms(self) -> float:
        """Of the network that nothing is removed of."""
        return self._costs.network_ms

    def of(self, plan: PruningPlan) -> float:
        """Milliseconds of an inference."""
        from ehap_tf.pruning.surgery.slim_model import prune  # It imports plans.

        key = plan.to_json()
        if key not in self._known:
            with tempfile.TemporaryDirectory() as folder:
                file = noise_file(prune(self._model, plan), pathlib.Path(folder) / "slim.tflite")
                self._known[key] = self._costs.predict_ms(file)
            done = len(self._known)
            self._progress(done, max(done, self._files), {"latency_ms": self._known[key]})
        return self._known[key]
