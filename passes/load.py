"""The load of blocks over time: how many bytes are alive at once. No layout is lower than the largest load."""

from __future__ import annotations

import numpy as np


def max_load(lower: np.ndarray, upper: np.ndarray, size: np.ndarray) -> int:
    """Most bytes alive at once, for half-open [lower, upper). O(n log n)."""
    return int(loads(lower, upper, size)[1].max(initial=0))


def load_at_worst(lower: np.ndarray, upper: np.ndarray, size: np.ndarray) -> tuple[int, int]:
    """The earliest time at which the load is `max_load`, and that load; (0, 0) without blocks."""
    times, load = loads(lower, upper, size)
    return (int(times[load.argmax()]), int(load.max())) if len(load) else (0, 0)


def loads(lower: np.ndarray, upper: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct event times, and the load from each to the next."""
    times, index = np.unique(np.concatenate([lower, upper]), return_inverse=True)
    change = np.zeros(len(times), np.int64)
    np.add.at(change, index[: len(lower)], size)
    np.subtract.at(change, index[len(lower) :], size)
    return times, np.cumsum(change)


def crowding(lower: np.ndarray, upper: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Per block: the largest load while it is alive. O(n log n)."""
    times, load = loads(lower, upper, size)
    table = [load]
    while 2 ** len(table) <= len(load):
        half = 2 ** (len(table) - 1)
        table.append(np.maximum(table[-1][:-half], table[-1][half:]))
    first, end = np.searchsorted(times, lower), np.searchsorted(times, upper)
    level = np.frexp((end - first).astype(np.float64))[1] - 1
    most = np.zeros(len(size), np.int64)
    for k, row in enumerate(table):
        here = level == k
        most[here] = np.maximum(row[first[here]], row[end[here] - 2**k])
    return most


def overlapping_pairs(lower: np.ndarray, upper: np.ndarray) -> int:
    """How many pairs of blocks are alive together. O(n log n)."""
    return int((np.searchsorted(np.sort(lower), upper, side="left") - np.searchsorted(np.sort(upper), lower, side="right") - 1).sum()) // 2
