"""Cycles of a microcontroller's core by class of instruction: what turns counted instructions into an estimate of time.

A target's `[cycles]` table names its source. It is an estimate wherever it appears: neither flash wait states nor caches nor
dependences between instructions are in it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from .spec_file import SpecFile, factor, integer, text


@dataclass(frozen=True, slots=True)
class CycleTable:
    """Cycles per instruction of each class; all others take one. `source`: where the numbers come from.

    `load_store`: one register, `pipelined` when another such comes right before; `multiple`: several registers, plus one for each;
    `refill`: added when a branch is taken; `multiply_add`, `multiply_long`, `divide`: integers; `fp_load_store` (plus one for a double),
    `fp_multiply_add`, `fp_divide` (and square root), `fp_pair`: two registers moved. `scale`: over all, for a core that publishes no
    table of its own. `average`: cycles per instruction, where an emulator cannot tell classes apart (0: unknown).
    """

    source: str
    load_store: int = 1
    pipelined: int = 1
    multiple: int = 1
    refill: int = 0
    multiply_add: int = 1
    multiply_long: int = 1
    divide: int = 1
    fp_load_store: int = 1
    fp_multiply_add: int = 1
    fp_divide: int = 1
    fp_pair: int = 1
    scale: float = 1.0
    average: float = 0.0

    def classes(self) -> tuple[int, ...]:
        """The cycles of each class, in the order of the fields: `struct costs` of count_blocks.c."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.type == "int")


def read_cycles(file: SpecFile, base: CycleTable | None) -> CycleTable | None:
    """The `[cycles]` table of a target's file; `base`'s where it has none. A table stands alone: nothing of `base` is mixed in."""
    names = [f.name for f in fields(CycleTable)]
    table = file.table(("cycles",), set(names))
    if not table.values:
        return base
    readers = {f.name: {"str": text, "int": integer, "float": factor}[str(f.type)] for f in fields(CycleTable)}
    values = {name: table.take(name, readers[name], None) for name in names if name in table.values}
    if "source" not in values:
        raise table.error("source", "a table of cycles needs its source, such as the manual and its table")
    return CycleTable(**values)
