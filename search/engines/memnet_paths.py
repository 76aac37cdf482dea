"""What the paths of a network from its input to its output look like, in numbers that MemNet's controller reads beside the blocks.

The numbers depend on the network's graph alone and treat all operations alike. Networks that differ only in the names of their locations
have the same ones, though their sequences of blocks differ.
"""

from __future__ import annotations

import numpy as np


def path_features(edges: np.ndarray, operations: int, output: int) -> np.ndarray:
    """Paths from location 0 to location `output`, over edges that each carry one operation: float32 (networks, 4 x operations + 3).

    `edges`: int (networks, edges, 3) of (location read, location written, operation from 0 or -1 where there is no such edge), each edge
    behind all those that write what it reads. Per operation: edges with it that lie on a path; the most and the fewest of them on one path;
    log(1 + paths that consist of it alone). Then the edges of the longest and of the shortest path, and log(1 + paths).
    Most, fewest, longest and shortest are -1 where no path exists.
    """
    n, count, _ = edges.shape
    each = np.arange(n)
    locations = int(max(output, edges[..., :2].max(initial=0))) + 1
    paths, alone = np.zeros((n, locations)), np.zeros((n, locations, operations))
    most, fewest = np.full((n, locations, operations + 1), -np.inf), np.full((n, locations, operations + 1), np.inf)
    paths[:, 0] = alone[:, 0] = 1
    most[:, 0] = fewest[:, 0] = 0
    wanted = np.zeros((n, locations), bool)
    wanted[:, output] = True
    steps = np.eye(operations + 1)[:, :operations]  # the last row, of -1, is empty
    for e in range(count):
        source, to, operation = edges[:, e].T
        there = operation >= 0
        step = np.hstack([steps[operation], np.ones((n, 1))])
        paths[each, to] += there * paths[each, source]
        alone[each, to] += steps[operation] * alone[each, source]
        along = np.where(there[:, None], most[each, source] + step, -np.inf), np.where(there[:, None], fewest[each, source] + step, np.inf)
        most[each, to] = np.maximum(most[each, to], along[0])
        fewest[each, to] = np.minimum(fewest[each, to], along[1])
    used = np.zeros((n, operations))
    for e in reversed(range(count)):
        source, to, operation = edges[:, e].T
        on_path = (operation >= 0) & wanted[each, to] & (paths[each, source] > 0)
        wanted[each, source] |= on_path
        used += steps[operation] * on_path[:, None]
    reached = paths[:, output, None] > 0
    extremes = [np.where(reached, bounds[:, output], -1) for bounds in (most, fewest)]
    per_operation = [used, *(b[:, :operations] for b in extremes), np.log1p(alone[:, output])]
    lengths = [b[:, operations:] for b in extremes]
    return np.hstack([*per_operation, *lengths, np.log1p(paths[:, output, None])]).astype(np.float32)
