"""An analysis as a memory snapshot: the dictionary of `torch.cuda.memory._snapshot()`, pickled, for pytorch.org/memory_viz.

The arena is one segment; a storage is allocated at its planned offset when the step of its birth begins and freed when the
step of its death begins. Weights, and inputs that the caller holds, are blocks of segments that were there before.
Only dictionaries, lists, tuples, strings and numbers are pickled.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..compiler.graph import Storage
    from .result import Analysis

ARENA_ADDRESS = 0x7F00_0000_0000
GAP = 1 << 21


def snapshot_bytes(a: Analysis) -> bytes:
    """`memory_snapshot`, pickled."""
    return pickle.dumps(memory_snapshot(a), protocol=4)


def memory_snapshot(a: Analysis) -> dict[str, Any]:
    """Segments at the end, and every allocation and release on the way, of the order and the plan in use."""
    frames = [_frames(node.op, node.scope, node.source) for node in a.graph.nodes]
    lifetimes, storages, birth = a.planned, a.graph.storages, a.graph.birth
    starts: dict[int, list[tuple[int, int, list[dict[str, Any]]]]] = {}
    ends: dict[int, list[tuple[int, int, list[dict[str, Any]]]]] = {}
    left: list[tuple[int, int, list[dict[str, Any]]]] = []
    for s in np.flatnonzero(lifetimes.birth >= 0).tolist():
        if storages[s].nbytes and s in a.plan.offsets:
            stack = frames[birth[s]] if birth[s] >= 0 else _frames(f"input {storages[s].name}".rstrip(), "", "")
            block = (ARENA_ADDRESS + int(a.plan.offsets[s]), storages[s].nbytes, stack)
            starts.setdefault(int(lifetimes.birth[s]), []).append(block)
            if s in a.graph.pinned:
                left.append(block)
            else:
                ends.setdefault(int(lifetimes.death[s]), []).append(block)
    events = [_event("segment_alloc", (ARENA_ADDRESS, a.arena, []), 0)] if a.arena else []
    for step, v in enumerate(lifetimes.order):
        events += _freed(ends.get(step, ()), step)
        events += [_event("alloc", block, step) for block in starts.get(step, ())]
        if a.graph.nodes[v].workspace:
            block = (ARENA_ADDRESS + int(a.plan.workspace_offsets[v]), a.graph.nodes[v].workspace, _frames("workspace", *_place(a, v)))
            events += [_event("alloc", block, step), *_freed([block], step)]
    events += _freed(ends.get(len(lifetimes.order), ()), len(lifetimes.order))
    segments = [_segment(ARENA_ADDRESS, a.arena, left)] if a.arena else []
    address = ARENA_ADDRESS + -(-a.arena // GAP) * GAP + GAP
    for storage_group in _standing(a):
        segment = _standing_segment(address, storage_group)
        if segment["total_size"]:
            segments.append(segment)
            address += -(-segment["total_size"] // GAP) * GAP + GAP
    return {"segments": segments, "device_traces": [events], "allocator_settings": {}, "external_annotations": []}


def _standing(a: Analysis) -> list[list[Storage]]:
    """Storages that are there before the first step, weights apart from inputs."""
    birth, inputs = a.graph.birth, a.inputs_policy == "caller"
    outside = [s for s in a.graph.storages if birth[s.id] < 0 and s.nbytes]
    return [[s for s in outside if s.role != "input"], [s for s in outside if s.role == "input" and inputs]]


def _standing_segment(address: int, storages: Iterable[Storage]) -> dict[str, Any]:
    blocks, at = [], address
    for s in storages:
        blocks.append((at, s.nbytes, _frames(f"{s.role} {s.name}".rstrip(), "", "")))
        at += s.nbytes
    return _segment(address, at - address, blocks)


def _segment(address: int, size: int, live: list[tuple[int, int, list[dict[str, Any]]]]) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    at = address
    for start, nbytes, stack in sorted(live, key=lambda block: block[0]):
        if start > at:
            blocks.append(_block(at, start - at, "inactive", []))
        blocks.append(_block(start, nbytes, "active_allocated", stack))
        at = start + nbytes
    if at < address + size:
        blocks.append(_block(at, address + size - at, "inactive", []))
    active = sum(nbytes for _, nbytes, _ in live)
    return {
        "device": 0, "address": address, "total_size": size, "allocated_size": active, "active_size": active, "requested_size": active,
        "stream": 0, "segment_type": "large", "segment_pool_id": (0, 0), "is_expandable": False, "frames": [], "blocks": blocks,
    }  # fmt: skip


def _block(address: int, size: int, state: str, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {"address": address, "size": size, "requested_size": size if state != "inactive" else 0, "state": state, "frames": frames}


def _freed(blocks: Iterable[tuple[int, int, list[dict[str, Any]]]], step: int) -> list[dict[str, Any]]:
    return [_event(action, block, step) for block in blocks for action in ("free_requested", "free_completed")]


def _event(action: str, block: tuple[int, int, list[dict[str, Any]]], step: int) -> dict[str, Any]:
    address, nbytes, frames = block
    return {"action": action, "addr": address, "size": nbytes, "stream": 0, "frames": frames, "time_us": step}


def _place(a: Analysis, v: int) -> tuple[str, str]:
    return a.graph.nodes[v].scope, a.graph.nodes[v].source


def _frames(name: str, scope: str, source: str) -> list[dict[str, Any]]:
    """Innermost first: the operator at the user's line, then its module."""
    filename, colon, line = source.rpartition(":")
    known = bool(colon) and line.isdigit()
    frames = [{"name": name, "filename": filename if known else "", "line": int(line) if known else 0}]
    if scope:
        frames.append({"name": scope, "filename": "module", "line": 0})
    return frames
