"""What a measurement leaves in the database, and many measurements at once."""

from __future__ import annotations

import os
import random
import time

import pytest

from neaptide.compiler.errors import BudgetError, NeaptideError
from neaptide.targets.cost import Cost, OpCost
from neaptide.targets.database import CostDatabase
from neaptide.targets.remember import features, measure_all, remember, toolchain_of

CONV = "conv2d_add_relu6(1x16x32x32,32x16x3x3,1x32x1x1,1x32x16x16)#0123456789abcdef"
DEPTHWISE = "conv2d_add(1x32x16x16,32x1x5x5,1x32x1x1,1x32x16x16)#0"
VERSIONS = {"apache-tvm": "0.27", "compiler": "zig 0.17", "emulator": "unicorn 2.1"}


def measured(item):
    """Takes longer for the first items, so that they end last."""
    time.sleep(0.05 * (3 - item % 4))
    if item == 2:
        raise BudgetError("candidate 2 does not fit")
    return Cost("m7", "measured", name=f"net {item}", instructions=item * 10)


def dies(item):
    if item == 1:
        os._exit(9)
    return measured(item)


def test_features_of_signatures():
    assert features(CONV) == {
        "op": "conv2d_add_relu6", "input": 16 * 32 * 32, "output": 32 * 16 * 16, "kernel": 3, "stride": 2, "expansion": 2.0,
        "macs": 32 * 16 * 16 * 16 * 9,
    }  # fmt: skip
    assert features(DEPTHWISE)["macs"] == 32 * 16 * 16 * 25
    assert features("matmul_add(1x64,64x10,10,1x10)#1")["macs"] == 640
    assert "macs" not in features("max_pool2d(1x8x4x4,1x8x2x2)#2")
    for other in ("", "relu", "relu()", "relu(1x)", "(1,2)#3", "relu(4"):
        assert features(other) == {}


def test_a_measurement_is_remembered_by_operator_and_by_network(tmp_path):
    per_op = (
        OpCost("a", CONV, instructions=100, bytes=4),
        OpCost("b", DEPTHWISE, instructions=30),
        OpCost("c", DEPTHWISE, instructions=40),
    )
    cost = Cost("m7", "measured", name="net", instructions=170, per_op=per_op, versions=VERSIONS)
    with CostDatabase(tmp_path / "c.sqlite") as db:
        assert remember(cost, db) == 3
        tools = "apache-tvm 0.27; compiler zig 0.17"
        assert toolchain_of(VERSIONS) == tools
        kept = db.get(DEPTHWISE, "m7", tools)
        assert kept is not None
        assert (kept.value, kept.unit, kept.features["kernel"]) == (35.0, "instructions", 5)
        net = db.get_network("net", "m7", tools)
        assert net is not None
        assert dict(net.operators) == {CONV: 1, DEPTHWISE: 2}
        with pytest.raises(NeaptideError, match="only measurements"):
            remember(Cost("m7", "predicted", name="net", instructions=1), db)
        untuned = Cost("cpu", "measured", latency=1.0, per_op=(OpCost("a", CONV, seconds=1.0, tuned=False),))
        assert remember(untuned, db) == 0


def test_many_measurements_are_the_same_in_any_order():
    items = list(range(6))
    alone = measure_all(measured, items, workers=1)
    heard: list[int] = []
    together = measure_all(measured, items, workers=3, done=heard.append)
    shuffled = random.Random(0).sample(items, len(items))
    again = dict(zip(shuffled, measure_all(measured, shuffled, workers=3), strict=True))
    for item in items:
        costs = (alone[item], together[item], again[item])
        assert len({str(cost) for cost in costs}) == 1
        assert isinstance(costs[0], BudgetError) == (item == 2)
    assert sorted(heard) == [1, 2, 3, 4, 5, 6]


def test_a_process_that_dies_is_said():
    with pytest.raises(NeaptideError, match="died"):
        measure_all(dies, list(range(4)), workers=2)
