"""Every claim about passes, on graphs of every kind: views, in-place, several outputs, pinned outputs, workspaces.

Together at least 2,000 graphs: 6 claims of 350 shrinkable examples each, and 600 seeded larger ones. `make fuzz` runs 100,000.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neaptide.testing import generate, graphs
from neaptide.testing.properties import PROPERTIES


@pytest.mark.parametrize("claim", PROPERTIES, ids=lambda claim: claim.__name__)
@settings(max_examples=350, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs(max_nodes=9), data=st.data())
def test_claim(claim, graph, data):
    claim(graph, lambda n: data.draw(st.integers(0, n - 1)))


@pytest.mark.parametrize("batch", range(6))
def test_claims_on_larger_graphs(batch):
    for seed in range(100 * batch, 100 * (batch + 1)):
        choose = random.Random(seed).randrange
        graph = generate.random_graph(choose, max_nodes=13)
        for claim in PROPERTIES:
            claim(graph, choose)
