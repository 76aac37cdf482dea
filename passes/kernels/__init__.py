"""Hot loops in numba. Importing a kernel imports numba; the first call on a machine compiles it and caches the result on disk."""
