"""The processes of a job on several machines: who is the chief, and what it tells the others."""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

_EXAMPLE = (
    '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


class Workers:
    """All processes that a strategy spans, this one among them.

    Every process calls the same methods in the same order: each call waits for the others.

    Args:
        strategy: a strategy of one process, or None, is a job whose only worker is the chief.

    Attributes:
        count: number of processes.
        index: of this one, counted from 0.
        is_chief: whether this one writes files.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None) -> None:
        self._strategy = strategy
        self.count, self.index = 1, 0
        resolver = getattr(strategy, "cluster_resolver", None)
        if resolver is not None and resolver.task_type:
            cluster = resolver.cluster_spec().as_dict()
            tasks = [(kind, i) for kind in ("chief", "worker") for i in _tasks(cluster, kind)]
            self.count = len(tasks)
            self.index = tasks.index((resolver.task_type, resolver.task_id))
        self.is_chief = self.index == 0

    def from_chief(self, content: bytes) -> bytes:
        """The chief's `content`, in every process; what the others give is dropped."""
        if self.count == 1:
            return content
        if not self.is_chief:
            content = b""
        length = int(self._sum(np.array([len(content)], np.int64))[0])
        words = np.zeros(-(-length // 4), np.int32)
        if self.is_chief:
            words.view(np.uint8)[:length] = np.frombuffer(content, np.uint8)
        return self._sum(words).tobytes()[:length]

    def value_from_chief(self, value: Any) -> Any:
        """The same for a JSON value."""
        if self.count == 1:
            return value
        return json.loads(self.from_chief(json.dumps(value).encode()))

    def _sum(self, local: np.ndarray) -> np.ndarray:
        """Adds up an array over the processes, of which only the chief's is not zero."""
        strategy = self._strategy
        assert strategy is not None  # there are several processes
        # A strategy adds over devices; of this process' devices the first has the array.
        first = self.index * (strategy.num_replicas_in_sync // self.count)
        spread = strategy.experimental_distribute_values_from_function(
            lambda context: (
                tf.constant(local)
                if context.replica_id_in_sync_group == first
                else tf.zeros(local.shape, local.dtype)
            )
        )
        # Through strategy.run: values that are spread otherwise are not always reduced over
        # processes.
        spread = strategy.run(tf.identity, args=(spread,))
        return np.asarray(strategy.reduce(tf.distribute.ReduceOp.SUM, spread, axis=None))


@contextlib.contextmanager
def lost_connections(workers: Workers) -> Iterator[None]:
    """Turns TensorFlow's errors about a process that is gone into one that says what to do.

    Raises:
        ConnectionError: another worker has died or cannot be reached.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if workers.count == 1 or not isinstance(error, _LOST):
            raise
        reason = f"{type(error).__name__}: {error.message}".partition("\n")[0][:300]
        # The frames hold a pool of threads, which would complain when the interpreter ends.
        traceback.clear_frames(error.__traceback__)
        raise ConnectionError(
            f"worker {workers.index} of {workers.count} lost the others. Start the same command "
            f"again on every worker: it goes on after the last whole epoch ({reason})"
        ) from error


# A dead peer surfaces as any of these, by what the others were doing at that moment.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


def require_cluster(environment: Mapping[str, str] = os.environ) -> None:
    """Checks TF_CONFIG, which says where the workers are and which of them this process is.

    Raises:
        ValueError: it is not set, or not of the form that `tf.distribute` documents.
    """
    text = environment.get("TF_CONFIG", "")
    advice = f"strategy=multi_worker needs TF_CONFIG on every worker, like {_EXAMPLE}"
    if not text:
        raise ValueError(f"TF_CONFIG is not set: {advice}")
    try:
        content = json.loads(text)
        cluster, task = content["cluster"], content["task"]
        address = cluster[task["type"]][int(task["index"])]
        usable = task["type"] in ("chief", "worker") and isinstance(address, str)
    except (ValueError, KeyError, TypeError, IndexError):
        usable = False
    if not usable:
        raise ValueError(f"TF_CONFIG does not say which worker this is: {advice}. Received: {text}")


def _tasks(cluster: Mapping[str, Any], kind: str) -> range:
    return range(len(cluster.get(kind, ())))
