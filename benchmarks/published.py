"""Published networks counted from their block tables: `python -m benchmarks.published [--quick] [--json PATH]`.

Every row of data/published_models.json that has a block table is built, traced, and counted as its publisher counts (see
`search.published`). Beside each stand the published numbers, as printed; what lies beyond half of their last digit is explained.
`--quick` compares the graph with the trace of the module for every eighth row only.
"""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal
from typing import Any

import torch

from benchmarks.figures import Figure, finish, shared_folder
from neaptide import trace
from neaptide.compiler.count import count
from neaptide.search.published import from_published, published_chain, published_counts

EXPLAINED = {
    "FBNetV2_F0": "a comment in the model definition, without the classifier's 1,280,000 MACs; cut, not rounded",
    "ofa-lg-8": "its own table counts 73.47 M at its 144 pixels; the publisher's list has 74, where the other 33 are rounded to nearest",
}
CLASSIFIER_OF_F0 = 1_280_000
CLOSE = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description="Parameters and multiply-adds of published networks.")
    parser.add_argument("--quick", action="store_true", help="trace every eighth network only")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = json.loads((shared_folder() / "data" / "published_models.json").read_text())["models"]
    rows = [row for row in models if row.get("arch")]
    counted = [_count(row) for row in rows]
    traced = [_is_its_trace(row) for row in rows[:: 8 if options.quick else 1]]
    said = [c for c in counted if c["params_said"] is not None or c["macs_said"] is not None]
    exact = [c for c in said if c["digits"] >= 5]
    outliers = [c for c in said if not c["within"]]
    recomputed = [(c, row) for c, row in zip(counted, rows, strict=True) if "computed_params" in row]
    equal = [c for c, row in recomputed if (c["params"], c["macs"]) == (row["computed_params"], row["computed_macs"])]
    worst = max((abs(off) for c in outliers for off in c["off"]), default=0.0)
    unexplained = [c["name"] for c in outliers if c["name"] not in EXPLAINED]
    figures = [
        Figure(
            "rows published to five decimals and more (FBNet, FBNetV2)",
            "equal to the last digit",
            f"{sum(c['within'] for c in exact)} of {len(exact)}",
            bool(exact) and all(c["within"] for c in exact),
        ),
        Figure(
            "all rows with published numbers",
            "within half of the last printed digit, or explained and within 2 %",
            f"{len(said) - len(outliers)} of {len(said)}, explained: {', '.join(c['name'] for c in outliers)} ({worst:.2%} off at most)",
            not unexplained and worst <= CLOSE,
        ),
        Figure("rows beside an independent recount", "equal", f"{len(equal)} of {len(recomputed)}", len(equal) == len(recomputed) > 0),
        Figure("graphs without torch against traces of the modules", "equal", f"{sum(traced)} of {len(traced)}", all(traced)),
    ]
    table = [
        (
            c["name"],
            f"{c['params']:,}",
            _shown(c["params_said"]),
            f"{c['macs']:,}",
            _shown(c["macs_said"]),
            EXPLAINED.get(c["name"], c["note"]),
        )
        for c in counted
    ]
    columns = ("network", "params", "published, M", "MACs", "published, M", "remark")
    notes = (
        "FBNet and FBNetV2 count weights of convolutions and classifier, neither biases nor batch norms, and an averaged pixel as a MAC.",
        "ProxylessNAS and Once-For-All count all parameters, and the MACs of convolutions and classifier.",
    )
    return finish("published", figures, columns, table, notes=notes, json_path=options.json)


def _count(row: dict[str, Any]) -> dict[str, Any]:
    params, macs = published_counts(row)
    note = "" if "computed_params" not in row else "equal to the recount"
    if row["name"] == "FBNetV2_F0":
        params, macs = params - CLASSIFIER_OF_F0, macs - CLASSIFIER_OF_F0
    params_said, macs_said = _printed(row.get("params_m")), _printed(row.get("flops_m"))
    if "macs_m" in row:
        macs_said = Decimal(int(row["macs_m"]))  # whole millions in every such row
    said = [(value, printed) for value, printed in ((params, params_said), (macs, macs_said)) if printed is not None]
    if not said:
        note = note or "the publisher gives no numbers"
    return {
        "name": row["name"],
        "params": params,
        "macs": macs,
        "params_said": params_said,
        "macs_said": macs_said,
        "note": note,
        "digits": _decimals(params_said) if params_said is not None else 0,
        "within": all(abs(Decimal(value) / 10**6 - printed) <= Decimal(10) ** -_decimals(printed) / 2 for value, printed in said),
        "off": [float(Decimal(value) / 10**6 / printed - 1) for value, printed in said],
    }


def _printed(number: float | None) -> Decimal | None:
    return None if number is None else Decimal(repr(number))


def _decimals(printed: Decimal) -> int:
    return max(0, -int(printed.as_tuple().exponent))


def _is_its_trace(row: dict[str, Any]) -> bool:
    """Whether the graph written without torch has the storages, nodes and counts of the trace of the module."""
    ours = published_chain(row).graph()
    traced = trace(from_published(row).eval(), (torch.zeros(published_chain(row).input_shape),))
    a, b = count(ours), count(traced)
    nodes = [[(n.op, n.inputs, n.outputs, n.writes, n.scope) for n in g.nodes] for g in (ours, traced)]
    return ours.storages == traced.storages and nodes[0] == nodes[1] and (a.macs, a.elementwise_flops) == (b.macs, b.elementwise_flops)


def _shown(printed: Decimal | None) -> str:
    return "" if printed is None else f"{printed:f}"


if __name__ == "__main__":
    sys.exit(main())
