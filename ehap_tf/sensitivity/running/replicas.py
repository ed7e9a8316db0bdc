"""Running the same function on one device or on every replica of a strategy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


class Replicas:
    """The devices of a `tf.distribute.Strategy`, or the default device when it is None."""

    def __init__(self, strategy: tf.distribute.Strategy | None = None) -> None:
        if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
            raise TypeError(
                f"strategy must be a tf.distribute.Strategy or None. Received: {strategy!r}"
            )
        self._strategy = strategy
        self._several_processes = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.count = 1 if strategy is None else int(strategy.num_replicas_in_sync)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Variables made inside are on every replica."""
        return contextlib.nullcontext() if self._strategy is None else self._strategy.scope()

    def spread(self, function: Callable[..., Any]) -> Callable[[Sequence[tuple[Any, ...]]], list]:
        """Turns `function(*arguments)` into one that takes up to `count` argument tuples at once.

        Returns:
            A function from a list of argument tuples to the list of their results.
        """
        if self._strategy is None:
            return lambda items: [function(*item) for item in items]
        strategy = self._strategy

        def on_one(*arguments: Any) -> Any:
            return function(*arguments)

        @tf.function(reduce_retracing=True, autograph=False)
        def everywhere(arguments: Any) -> Any:
            # A plain function: given a tf.function, a strategy would call it with the values of
            # all replicas at once, which do not fit its signature.
            return strategy.run(on_one, args=arguments)

        def run(items: Sequence[tuple[Any, ...]]) -> list:
            # Idle replicas repeat the last item; what they compute is dropped.
            filled = [*items, *[items[-1]] * (self.count - len(items))]
            structure = filled[0]
            columns = zip(*(tf.nest.flatten(item) for item in filled), strict=True)
            spread = [
                strategy.experimental_distribute_values_from_function(
                    lambda context, column=column: column[context.replica_id_in_sync_group]
                )
                for column in columns
            ]
            results = everywhere(tf.nest.pack_sequence_as(structure, spread))
            flat = [self._of_all(result) for result in tf.nest.flatten(results)]
            return [
                tf.nest.pack_sequence_as(results, [column[i] for column in flat])
                for i in range(len(items))
            ]

        return run

    def _of_all(self, result: Any) -> Sequence[Any]:
        """One tensor per replica, those of other processes included."""
        strategy = self._strategy
        assert strategy is not None  # nothing is spread without one
        local = strategy.experimental_local_results(result)
        if not self._several_processes:
            return local
        if local[0].shape.rank == 0:
            # Collectives know no booleans.
            row = strategy.run(lambda x: tf.cast(x, tf.float64)[tf.newaxis], args=(result,))
            return [
                tf.cast(value, local[0].dtype) for value in strategy.gather(row, axis=0).numpy()
            ]
        lengths = strategy.run(lambda x: tf.shape(x)[:1], args=(result,))
        return tf.split(strategy.gather(result, axis=0), strategy.gather(lengths, axis=0).numpy())
