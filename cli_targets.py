"""`neaptide targets`: the devices that costs are known for."""

from __future__ import annotations

import json as codec

from . import cli_options as opt
from .report.console import output


def targets(json: opt.Json = False) -> int:
    """List the built-in targets; a TOML file given by path is one too."""
    from .report.targets import targets_table
    from .targets.spec import list_targets

    known = list_targets()
    if json:
        print(codec.dumps([t.to_dict() for t in known], indent=2))
    else:
        output().print(targets_table(known))
    return 0
