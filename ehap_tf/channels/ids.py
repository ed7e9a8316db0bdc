"""The identities of channels: which filter a channel comes from, and which ones live together.

A tensor's channel axis carries an integer array of ids. An *atom* is one filter of one layer. A
*derived* id is a channel that is there as long as one of two others is (the sum of two branches).
`ZERO` is a channel that is always zero, such as the padding of an identity shortcut: nobody needs
it. Atoms can be tied (they live or die together) and frozen (they always live); both may happen
after ids were derived from them, since life is only computed by `alive`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

ZERO = 0


class ChannelIds:
    """The table behind the id arrays of one traced model."""

    def __init__(self) -> None:
        self._parent: list[int] = [ZERO]  # union-find over ids; derived ids stay alone
        self._sources: dict[int, tuple[int, int]] = {}  # derived id -> the two it needs one of
        self._derived: list[tuple[Ids, Ids, Ids]] = []  # (a, b, out) arrays, in order of creation
        self._frozen: dict[int, str] = {}  # root of a group -> why it always lives
        self.atoms: dict[str, Ids] = {}  # layer -> the ids of its filters

    def __len__(self) -> int:
        return len(self._parent)

    def filters(self, layer: str, count: int) -> Ids:
        """The ids of a layer's filters: fresh at the first call, the same ones afterwards."""
        if layer not in self.atoms:
            self.atoms[layer] = self._fresh(count)
        return self.atoms[layer]

    def constants(self, count: int, reason: str) -> Ids:
        """Fresh ids of channels that belong to no filter and always live."""
        ids = self._fresh(count)
        self.freeze(ids, reason)
        return ids

    def either(self, a: Ids, b: Ids) -> Ids:
        """Ids of channels that are there where `a` or `b` is."""
        if np.array_equal(a, b):
            return a
        out = np.where(a == ZERO, b, a)
        both = (a != ZERO) & (b != ZERO) & (a != b)
        fresh = self._fresh(int(both.sum()))
        out[both] = fresh
        self._derived.append((a[both], b[both], fresh))
        self._sources.update(
            zip(fresh.tolist(), zip(a[both].tolist(), b[both].tolist(), strict=True), strict=True)
        )
        return out

    def tie(self, a: Ids, b: Ids) -> Ids:
        """Makes `a[i]` and `b[i]` live or die together.

        Returns ids that are `ZERO` only where both are. A derived id brings all the atoms that it
        depends on into the group.
        """
        for left, right in zip(a.tolist(), b.tolist(), strict=True):
            if left == right or ZERO in (left, right):
                continue
            members = self._leaves(left) + self._leaves(right)
            for member in members[1:]:
                self._join(members[0], member)
        return np.where(a == ZERO, b, a)

    def freeze(self, ids: Ids, reason: str) -> None:
        """Makes `ids` (and all the atoms that derived ones depend on) live for ever."""
        for channel in np.unique(ids).tolist():
            if channel != ZERO:
                for leaf in self._leaves(channel):
                    self._frozen.setdefault(self._root(leaf), reason)

    def settle(self, ids: Ids, reason: str) -> Ids:
        """The same ids with every `ZERO` replaced by a constant: the channel has to be there."""
        zeros = ids == ZERO
        if not zeros.any():
            return ids
        out = ids.copy()
        out[zeros] = self.constants(int(zeros.sum()), reason)
        return out

    def groups(self, ids: Ids) -> Ids:
        """For each id of an atom the id that stands for its group."""
        return np.array([self._root(channel) for channel in ids.tolist()], np.int64)

    def frozen_reason(self, channel: int) -> str | None:
        """Why an atom's group always lives, or None when it may be pruned."""
        return self._frozen.get(self._root(channel))

    def merged(self, ids: Ids) -> set[int]:
        """The atoms behind those of `ids` that a sum makes another channel of."""
        parts = {source for pair in self._sources.values() for source in pair}
        return {leaf for one in set(ids.tolist()) & parts for leaf in self._leaves(one)}

    def alive(self, kept: dict[str, Flags]) -> Flags:
        """Which ids are there when `kept[layer]` marks the filters that stay; others all stay.

        Returns:
            A flag for every id, to be indexed with id arrays.
        """
        alive = np.ones(len(self), np.bool_)
        alive[ZERO] = False
        for layer, flags in kept.items():
            alive[self.atoms[layer]] = flags
        for a, b, out in self._derived:
            alive[out] = alive[a] | alive[b]
        return alive

    def _fresh(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def _leaves(self, channel: int) -> list[int]:
        found: list[int] = []
        seen: set[int] = set()
        waiting = [channel]
        while waiting:
            current = waiting.pop()
            if current == ZERO or current in seen:
                continue
            seen.add(current)
            if current in self._sources:
                waiting.extend(self._sources[current])
            else:
                found.append(current)
        return found

    def _root(self, channel: int) -> int:
        root = channel
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[channel] != root:
            self._parent[channel], channel = root, self._parent[channel]
        return root

    def _join(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        if a == b:
            return
        self._parent[b] = a
        reason = self._frozen.pop(b, None)
        if reason is not None:
            self._frozen.setdefault(a, reason)
