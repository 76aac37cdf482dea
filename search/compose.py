"""The one loop behind a million architectures a second: rows of genes to rows of a table, and those to maxima and sums."""

from __future__ import annotations

from ..passes.kernels.compiled import kernel


@kernel
def compose(rows, genes_at, genes, strides, base, sparse, table, out):
    """Costs of architectures from those of their segments.

    rows: (n, genes) uint16. Dense slot s reads genes[genes_at[s]:genes_at[s + 1]], and its row of `table` is base[s] plus their
    mixed-radix code; sparse (n, m) int64 holds rows of `table` as they are. Columns of `table` and rows of `out` (8, n), int64:
    peak, bound, arena, arena bound, where the least counts; parameters, multiply-adds, weight bytes; and solved, which is negative where
    a segment is not, and where one has no arena yet, as the arena then is.
    """
    for i in range(rows.shape[0]):
        peak = bound = arena = arena_bound = params = macs = weights = 0
        solved = arenas = 0
        for s in range(base.shape[0] + sparse.shape[1]):
            if s < base.shape[0]:
                r = base[s]
                for j in range(genes_at[s], genes_at[s + 1]):
                    r += rows[i, genes[j]] * strides[j]
            else:
                r = sparse[i, s - base.shape[0]]
            peak = max(peak, table[r, 0])
            bound = max(bound, table[r, 1])
            arena = max(arena, table[r, 2])
            arenas = min(arenas, table[r, 2])
            arena_bound = max(arena_bound, table[r, 3])
            params += table[r, 4]
            macs += table[r, 5]
            weights += table[r, 6]
            solved = min(solved, table[r, 7])
        out[0, i] = peak
        out[1, i] = bound
        out[2, i] = arenas if arenas < 0 else arena
        out[3, i] = arena_bound
        out[4, i] = params
        out[5, i] = macs
        out[6, i] = weights
        out[7, i] = solved
