"""What the schedule of a remembered operator may say: rows of a cost database come from strangers, and a schedule decides what is compiled.

A schedule is a mapping for one of ours, a name for a default, or a MetaSchedule trace: `[instructions, decisions]`, an instruction being
`[kind, inputs, attributes, outputs]`. TVM knows instructions that call any registered function and annotations that compile any text into
the operator. So this is a list of what our own searches write, and everything else is refused: the kind of every instruction, the key and
the value of every annotation, and the form of each input, attribute and decision. Needs no TVM: files are checked where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

INSTRUCTIONS = 4096  # of one trace; the longest of real searches have a hundred
_NAMES = 256  # characters of a block's name
_LIMIT = 1 << 31
_PARTS = 4096  # inputs, attributes or outputs of one instruction

Check = Callable[[Any], bool]


def check_schedule(schedule: Any) -> None:
    """Raise `ValueError` naming the first instruction, annotation or value of `schedule` that no search of ours writes. O(its size)."""
    if isinstance(schedule, Mapping):
        _check_own(schedule)
    elif isinstance(schedule, str):
        if schedule not in DEFAULTS:
            raise ValueError(f"a schedule called {schedule[:_NAMES]!r}, where only {', '.join(DEFAULTS)} has a name")
    else:
        _check_trace(schedule)


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _one_of(*known: Any) -> Check:
    return lambda value: any(type(value) is type(k) and value == k for k in known)


def _variable(letters: str) -> Check:
    pattern = re.compile(rf"[{letters}]\d{{1,6}}")
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _text(pattern: str) -> Check:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _NAMES and re.fullmatch(r"\w+", value, re.ASCII) is not None


def _list(of: Check, least: int = 0, most: int = _PARTS) -> Check:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(of, value))


def _row(*of: Check) -> Check:
    return lambda value: isinstance(value, list) and len(value) == len(of) and all(c(v) for c, v in zip(of, value, strict=True))


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def _first_then(first: Check, rest: Check) -> Check:
    return lambda value: isinstance(value, list) and 1 <= len(value) <= _PARTS and first(value[0]) and all(map(rest, value[1:]))


_BLOCK, _LOOP, _NUMBER = _variable("b"), _variable("l"), _variable("v")
_SIZE = _either(_NUMBER, _whole(1, 1024))
_FLAG, _NONE = _one_of(True, False), _row()
_SCOPE = _one_of("global", "shared", "local")
_PLACE = _whole(0, 64)

# Ours, by kind: the range of each of their numbers.
OWN: Mapping[str, Mapping[str, Check]] = MappingProxyType(
    {
        "product": {"rows": _whole(1, 64), "vectors": _whole(1, 64)},
        "window": {"rows": _whole(1, 64), "vectors": _whole(1, 64), "together": _whole(1, 1 << 16)},
    }
)
DEFAULTS = ("dlight",)

# Annotations of blocks and loops by key: what may stand there. A `_NUMBER` is what a decision of the trace says.
ANNOTATIONS: Mapping[str, Check] = MappingProxyType(
    {
        "meta_schedule.cooperative_fetch": _either(_NUMBER, _whole(1, 16)),
        "meta_schedule.parallel": _whole(-1, 1 << 20),
        "meta_schedule.random_compute_producer": _one_of(1),
        "meta_schedule.thread_extent_high_inclusive": _whole(1, 1024),
        "meta_schedule.thread_extent_low_inclusive": _whole(1, 1024),
        "meta_schedule.tiling_structure": _text(r'"[SR]{1,16}"'),
        "meta_schedule.unroll_explicit": _either(_NUMBER, _whole(0, 1024)),
        "meta_schedule.unroll_implicit": _either(_NUMBER, _whole(0, 1024)),
        "meta_schedule.vectorize": _whole(-1, 64),
        "pragma_auto_unroll_max_step": _whole(0, 1024),
        "pragma_unroll_explicit": _one_of(0, 1),
        "software_pipeline_async_stages": _list(_whole(0, 8), most=8),
        "software_pipeline_order": _list(_whole(0, 8), most=8),
        "software_pipeline_stage": _list(_whole(0, 8), most=8),
    }
)
_REMOVED = _either(_one_of("schedule_rule"), lambda key: isinstance(key, str) and key in ANNOTATIONS)
_THREADS = _text(r"(blockIdx|threadIdx|vthread)\.[xyz]")
_CHOICES = _row(_list(_whole(0, 1024), 1, 32), _list(lambda p: type(p) in (int, float) and 0 <= p <= 1, 1, 32))

# Instructions by kind: their inputs, and their attributes.
KINDS: Mapping[str, tuple[Check, Check]] = MappingProxyType(
    {
        "AddUnitLoop": (_row(_either(_BLOCK, _LOOP)), _NONE),
        "Bind": (_row(_LOOP), _row(_THREADS)),
        "CacheRead": (_row(_BLOCK, _list(_BLOCK)), _row(_PLACE, _SCOPE)),
        "CacheWrite": (_row(_BLOCK, _list(_BLOCK)), _row(_PLACE, _SCOPE)),
        "ComputeAt": (_row(_BLOCK, _LOOP), _row(_whole(0, 1), _whole(-2, 64))),
        "ComputeInline": (_row(_BLOCK), _NONE),
        "DecomposeReduction": (_row(_BLOCK, _LOOP), _NONE),
        "EnterPostproc": (_NONE, _NONE),
        "Fuse": (_list(_LOOP, 1), _row(_whole(0, 1))),
        "GetChildBlocks": (_row(_either(_BLOCK, _LOOP)), _NONE),
        "GetConsumers": (_row(_BLOCK), _NONE),
        "GetLoops": (_row(_BLOCK), _NONE),
        "GetProducers": (_row(_BLOCK), _NONE),
        "GetSBlock": (_NONE, _row(_name, _one_of("main"))),
        "Parallel": (_row(_LOOP), _NONE),
        "RFactor": (_row(_LOOP), _row(_whole(-8, 64))),
        "Reorder": (_list(_LOOP, 1), _NONE),
        "ReverseComputeAt": (_row(_BLOCK, _LOOP), _row(_whole(0, 1), _whole(-2, 64))),
        "ReverseComputeInline": (_row(_BLOCK), _NONE),
        "SampleCategorical": (_NONE, _CHOICES),
        "SampleComputeLocation": (_row(_BLOCK), _NONE),
        "SamplePerfectTile": (_row(_LOOP), _row(_whole(1, 16), _whole(1, 64))),
        "SetScope": (_row(_BLOCK), _row(_PLACE, _SCOPE)),
        "Split": (_first_then(_LOOP, _either(_SIZE, _one_of("None", None))), _row(_FLAG, _FLAG)),
        "Vectorize": (_row(_LOOP), _NONE),
    }
)
_DECISIONS: Mapping[str, Check] = MappingProxyType(
    {
        "SampleCategorical": _whole(0, 31),
        "SampleComputeLocation": _whole(-2, 256),
        "SamplePerfectTile": _list(_whole(1, _LIMIT), 1, 16),
    }
)
_OUTPUTS = _list(_variable("blv"))


def _check_own(schedule: Mapping[Any, Any]) -> None:
    kind = schedule.get("kind")
    ranges = OWN.get(kind) if isinstance(kind, str) else None
    if ranges is None:
        raise ValueError(f"a schedule of kind {_brief(kind)}, where there are {', '.join(OWN)}")
    if set(schedule) != {"kind", *ranges}:
        raise ValueError(f"a schedule of kind {kind} with {_brief(sorted(map(str, schedule)))}, where it has kind, {', '.join(ranges)}")
    for name, check in ranges.items():
        if not check(schedule[name]):
            raise ValueError(f"a schedule of kind {kind} whose {name} is {_brief(schedule[name])}")


def _check_trace(trace: Any) -> None:
    if not isinstance(trace, list) or len(trace) != 2 or not all(isinstance(part, list) for part in trace):
        raise ValueError(f"a schedule that is {_brief(trace)}, neither one of ours nor a trace of instructions and decisions")
    instructions, decisions = trace
    if max(len(instructions), len(decisions)) > INSTRUCTIONS:
        raise ValueError(f"a schedule of {len(instructions):,} instructions, where at most {INSTRUCTIONS:,} are read")
    for number, instruction in enumerate(instructions):
        _check_instruction(number, instruction)
    for decision in decisions:
        if not (isinstance(decision, list) and len(decision) == 2 and _whole(0, len(instructions) - 1)(decision[0])):
            raise ValueError(f"a schedule with the decision {_brief(decision)}")
        kind = instructions[decision[0]][0]
        if kind not in _DECISIONS or not _DECISIONS[kind](decision[1]):
            raise ValueError(f"a schedule whose instruction {decision[0]}, {kind}, has the decision {_brief(decision[1])}")


def _check_instruction(number: int, instruction: Any) -> None:
    if not isinstance(instruction, list) or len(instruction) != 4 or not isinstance(instruction[0], str):
        raise ValueError(f"a schedule whose instruction {number} is {_brief(instruction)}")
    kind, inputs, attributes, outputs = instruction
    if kind == "Annotate":
        return _check_annotation(number, inputs, attributes, outputs)
    if kind == "Unannotate":
        if not (_row(_either(_BLOCK, _LOOP))(inputs) and _row(_REMOVED)(attributes) and outputs == []):
            raise ValueError(f"a schedule whose instruction {number} removes the annotation {_brief(attributes)} of {_brief(inputs)}")
        return None
    if kind not in KINDS:
        raise ValueError(f"a schedule whose instruction {number} is {_brief(kind)}, which no search of Neaptide's writes")
    checks = (*KINDS[kind], _OUTPUTS)
    for what, check, value in zip(("inputs", "attributes", "outputs"), checks, (inputs, attributes, outputs), strict=True):
        if not check(value):
            raise ValueError(f"a schedule whose instruction {number}, {kind}, has the {what} {_brief(value)}")
    return None


def _check_annotation(number: int, inputs: Any, attributes: Any, outputs: Any) -> None:
    key = attributes[0] if isinstance(attributes, list) and len(attributes) == 1 else attributes
    check = ANNOTATIONS.get(key) if isinstance(key, str) else None
    if check is None:
        raise ValueError(f"a schedule whose instruction {number} is the annotation {_brief(key)}, which no search of Neaptide's writes")
    if not (isinstance(inputs, list) and len(inputs) == 2 and _either(_BLOCK, _LOOP)(inputs[0]) and check(inputs[1]) and outputs == []):
        raise ValueError(f"a schedule whose instruction {number}, the annotation {key!r}, says {_brief(inputs)}")


def _brief(value: Any) -> str:
    """A value in a few words, whatever it is."""
    try:
        text = ascii(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 80 else f"{text[:80]}..."
