"""What a model costs on a device, and how that is known: run there, predicted from what was run, or bounded from below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from ..compiler.errors import FormatError

FORMAT, VERSION = "neaptide.cost", 1
KINDS = ("measured", "predicted", "bound")
CostKind = Literal["measured", "predicted", "bound"]


@dataclass(frozen=True, slots=True)
class OpCost:
    """One operator of a run. `signature`: what it computes, the key of the cost database. `instructions` for microcontrollers, `seconds`
    elsewhere; `bytes`: workspace it needs beside inputs and outputs; `tuned` False: no schedule was searched, so its time says little.
    """

    name: str
    signature: str
    instructions: int | None = None
    seconds: float | None = None
    bytes: int = 0
    tuned: bool | None = None
    kind: CostKind = "measured"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Cost:
    """What `measure` found for one model on one target.

    `kind`: measured on the device or its emulator, predicted, or a lower bound. `instructions`: executed, for microcontrollers;
    `latency`: median seconds, `spread`: relative half range of its repetitions. `arena`: bytes of the static arena as seen on the
    device, `plan`: the same as planned; `stack`: high-water mark; `flash`: bytes of code and constants, `sections` its parts.
    `max_error`: largest relative error of the outputs against torch; `correct`: whether that is no more than rounding (`targets.verdict`),
    None where nothing ran. `fits`: within the target's memories, None where nothing limits
    them or it is not known. `error`: expected relative error of a prediction. `cycles`: an estimate from a table, never measured;
    `estimated_seconds`: those at the target's clock. `reasons`: the verdict in words, one sentence each. `peak`: bytes that the
    device's allocator handed out at most, weights and inputs aside. `peers`, `peer_spreads`, `peer_peaks`: median seconds of other
    runtimes in the same run, their relative half range, and their peaks. `versions`: every tool that took part.
    """

    target: str
    kind: CostKind
    name: str = ""
    instructions: int | None = None
    latency: float | None = None
    spread: float | None = None
    arena: int | None = None
    plan: int | None = None
    peak: int | None = None
    stack: int | None = None
    flash: int | None = None
    sections: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    max_error: float | None = None
    correct: bool | None = None
    fits: bool | None = None
    error: float | None = None
    cycles: int | None = None
    estimated_seconds: float | None = None
    per_op: tuple[OpCost, ...] = ()
    peers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    peer_spreads: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    peer_peaks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a cost is one of {', '.join(KINDS)}, not {self.kind!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Cost.from_dict, (self.to_dict(),)

    @property
    def value(self) -> float | None:
        """Instructions where they are counted, else seconds."""
        return self.latency if self.instructions is None else self.instructions

    def slowest(self, n: int = 10) -> tuple[OpCost, ...]:
        """The `n` operators that cost most, dearest first."""
        return tuple(sorted(self.per_op, key=lambda op: -(op.instructions or op.seconds or 0))[:n])

    def to_dict(self) -> dict[str, Any]:
        """As versioned JSON values; `from_dict` reads them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            "format": FORMAT,
            "version": VERSION,
            **values,
            "sections": dict(self.sections),
            "peers": dict(self.peers),
            "peer_spreads": dict(self.peer_spreads),
            "peer_peaks": dict(self.peer_peaks),
            "versions": dict(self.versions),
            "reasons": list(self.reasons),
            "per_op": [op.to_dict() for op in self.per_op],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Cost:
        """The cost that `to_dict` wrote. Raises `FormatError` for another format or version."""
        if document.get("format") != FORMAT or document.get("version") != VERSION:
            raise FormatError(
                f"not a {FORMAT} of version {VERSION}: format {document.get('format')!r}, version {document.get('version')!r}"
            )
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in document.items() if name in known}
        values["per_op"] = tuple(OpCost(**op) for op in _list(document.get("per_op", ())))
        values["reasons"] = tuple(_list(document.get("reasons", ())))
        for name in ("sections", "peers", "peer_spreads", "peer_peaks", "versions"):
            values[name] = MappingProxyType(dict(document.get(name, {})))
        return cls(**values)


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise FormatError(f"a cost's operators and reasons are lists, not {type(value).__name__}")
    return value
