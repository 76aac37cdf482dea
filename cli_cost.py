"""`neaptide cost show|export|import|prune|fit`: the database of measured costs, and predictors fitted to it or to a CSV."""

from __future__ import annotations

import json as codec
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import cli_options as opt
from .cli_outputs import Outputs
from .report.console import note, output

if TYPE_CHECKING:
    from .targets.database import CostDatabase
    from .targets.predictors import OperatorPredictor, Predictor

DAY_S = 86400.0
app = typer.Typer(help="The database of measured operators and networks, and predictors fitted to it.", no_args_is_help=True)

Database = Annotated[
    str, typer.Option("--database", metavar="FILE", help="Default: $NEAPTIDE_COSTS, else the user's data folder.", show_default=False)
]
Target = Annotated[str, typer.Option("--target", metavar="NAME", help="Only this target.", show_default=False)]
Toolchain = Annotated[str, typer.Option("--toolchain", metavar="TEXT", help="Only this toolchain.", show_default=False)]
Like = Annotated[str, typer.Option("--like", metavar="TEXT", help="Only signatures that contain it.", show_default=False)]


@app.command()
def show(
    database: Database = "",
    target: Target = "",
    toolchain: Toolchain = "",
    like: Like = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="At most so many rows; 0: all.")] = 40,
    json: opt.Json = False,
) -> int:
    """How much is known of each target, or with a filter the measurements themselves."""
    from .report.costs import rows_table, summary_table
    from .targets.cost_rows import row_document

    with _open(database) as db:
        if not (target or toolchain or like):
            known = db.counts()
            names = ("target", "toolchain", "operators", "networks")
            if json:
                print(codec.dumps({"database": str(db.path), "known": [dict(zip(names, row, strict=True)) for row in known]}, indent=2))
            elif known:
                output().print(summary_table(known, str(db.path)))
            else:
                output().print(
                    f"{db.path}: empty; `neaptide measure` fills it, `neaptide cost import FILE` brings rows from elsewhere", soft_wrap=True
                )
            return 0
        rows = _rows(db, target, toolchain, like)
    shown = rows[:limit] if limit else rows
    if json:
        print(codec.dumps([row_document(row) for row in shown], indent=2))
    else:
        output().print(rows_table(shown))
        if len(shown) < len(rows):
            note(f"{len(rows) - len(shown):,} more; --limit 0 shows all")
    return 0


@app.command("export")
def export_costs(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, for `neaptide cost import`.")],
    database: Database = "",
    target: Target = "",
    toolchain: Toolchain = "",
    like: Like = "",
) -> int:
    """Write measurements to a file that another database can import."""
    from .targets.cost_rows import export_rows

    Outputs(file)
    with _open(database) as db:
        written = export_rows(_rows(db, target, toolchain, like), file)
    note(f"wrote {written:,} rows to {file}")
    return 0


@app.command("import")
def import_costs(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `neaptide cost export` wrote.")],
    database: Database = "",
) -> int:
    """Add the measurements of a file; of two with one key the newer stays."""
    from .targets.cost_rows import import_rows

    with _open(database) as db:
        read, changed = import_rows(file, db)
    note(f"read {read:,} rows, {changed:,} of them new or newer")
    return 0


@app.command()
def prune(
    database: Database = "",
    target: Target = "",
    toolchain: Toolchain = "",
    like: Like = "",
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Only what was measured before so many days.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything; needed when nothing else is given.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many, forget none.")] = False,
) -> int:
    """Forget measurements that match all that is given."""
    if not (everything or target or toolchain or like or older_than is not None):
        raise typer.BadParameter("say what to forget: --target, --toolchain, --like, --older-than DAYS, or --all")
    before = None if older_than is None else time.time() - older_than * DAY_S
    with _open(database) as db:
        gone = db.prune(target=target or None, toolchain=toolchain or None, like=like or None, before=before, dry_run=dry_run)
    note(f"{gone:,} rows {'would be forgotten' if dry_run else 'forgotten'}")
    return 0


@app.command("fit")
def fit_predictor(
    csv: Annotated[
        str,
        typer.Argument(
            metavar="[CSV]", help="Measured networks, one a line; without it the operators of the database.", show_default=False
        ),
    ] = "",
    value: Annotated[str, typer.Option("--value", metavar="COLUMN", help="The CSV's column of costs.", show_default=False)] = "",
    out: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where the predictor goes: `.npz`.", show_default=False)] = "",
    additive: Annotated[bool, typer.Option("--additive", help="No boosting: needs no scikit-learn.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the folds and the trees.")] = 0,
    database: Database = "",
    target: Target = "",
    toolchain: Toolchain = "",
    json: opt.Json = False,
) -> int:
    """Fit a predictor, choose its model by cross-validation, and say how far off it is."""
    from .report.costs import predictor_view
    from .targets.predictors import fit, fit_operators, read_csv, save_predictor

    outputs = Outputs(out)
    if csv:
        columns, costs = read_csv(csv, value or None)
        predictor: Predictor | OperatorPredictor = fit(
            columns, costs, boosting=not additive, seed=seed, target=target, toolchain=toolchain, unit=value
        )
    else:
        if not target:
            raise typer.BadParameter("give a CSV of measured networks, or --target NAME for the operators of the database")
        with _open(database) as db:
            predictor = fit_operators(db, target=target, toolchain=toolchain or None, boosting=not additive, seed=seed)
    outputs.write(out, lambda path: save_predictor(predictor, path))
    if json:
        print(codec.dumps(predictor_document(predictor), indent=2))
    else:
        output().print(predictor_view(predictor))
    outputs.raise_failed()
    return 0


def predictor_document(predictor: Predictor | OperatorPredictor) -> dict[str, Any]:
    """What a predictor is and how accurate, as JSON values."""
    from .targets.predictors import Predictor

    common = {"format": "neaptide.fit", "version": 1, "target": predictor.target, "toolchain": predictor.toolchain, "unit": predictor.unit}
    if isinstance(predictor, Predictor):
        return {**common, "kind": "networks", **_model(predictor)}
    return {
        **common,
        "kind": "operators",
        "table": len(predictor.table),
        "models": {kind or "all": _model(model) for kind, model in predictor.models.items()},
        "sums": asdict(predictor.sums) if predictor.sums else None,
        "unseen": asdict(predictor.unseen) if predictor.unseen else None,
    }


def _model(predictor: Predictor) -> dict[str, Any]:
    return {
        "model": predictor.fitted.model.name,
        "accuracy": asdict(predictor.accuracy),
        "tried": [{"model": name, **asdict(accuracy)} for name, accuracy in predictor.tried],
    }


def _open(database: str) -> CostDatabase:
    from .targets.database import CostDatabase

    return CostDatabase(database or None)


def _rows(db: CostDatabase, target: str, toolchain: str, like: str) -> list[Any]:
    from .targets.database import NetworkRow, OperatorRow

    chosen = {"target": target or None, "toolchain": toolchain or None, "like": like or None}
    return [*db.rows(OperatorRow, **chosen), *db.rows(NetworkRow, **chosen)]
