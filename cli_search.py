"""`neaptide search`: architectures that keep every limit and are best by the objectives; a study that can be taken up again."""

from __future__ import annotations

import json as codec
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .cli_outputs import Outputs
from .compiler.errors import MissingExtraError, NeaptideError
from .report.console import Stages, note, output

SPACE, SEARCH, RUN, OUTPUT = "What is searched", "How", "Where it runs and is kept", "What comes out"


def _option(*names: str, panel: str, metavar: str | None = None, least: int | None = None, help: str) -> Any:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, min=least, help=help, show_default=False)


Space = Annotated[
    str,
    _option(
        "--space", "-s", panel=SPACE, metavar="NAME",
        help="`nasbench201`, `nasbench_macro`, `darts`, `memnet`, `ofa_mbv3`, `compofa`, `moofa`, `proxyless_mbconv`, `proxyless_tree`, "
        "`fbnetv2`, or your own as `FILE.py:CLASS`.",
    ),
]  # fmt: skip
SpaceOptions = Annotated[list[str], _option("--space-option", panel=SPACE, metavar="KEY=VALUE", help="`N=1`; once for each.")]
Target = Annotated[
    str,
    _option(
        "--target",
        "-t",
        panel=SPACE,
        metavar="NAME",
        help="A target that `neaptide targets` lists, or a TOML file; its memories are limits.",
    ),
]
Constraints = Annotated[
    list[str],
    _option(
        "--constraint", "-c", panel=SPACE, metavar="LIMIT",
        help="`peak<=320KiB`, `flash<=1MB`, `params<=500k`, `macs<=10M`, `latency<=5ms`; once for each. KB is 1000 B, KiB 1024 B.",
    ),
]  # fmt: skip
Accounting = Annotated[
    str, _option("--accounting", panel=SPACE, metavar="NAME", help="What a peak counts. Default: `lifetime`, all that is alive.")
]
Weights = Annotated[
    Literal["auto", "flash", "ram"],
    _option("--weights", panel=SPACE, metavar="WHERE", help="Weights in `flash` or `ram`. Default: as the accounting says."),
]
Objective = Annotated[
    str,
    _option(
        "--objective",
        panel=SPACE,
        metavar="NAMES",
        help="`accuracy` (default), `accuracy,latency`; the first one matters most. Also `naswot`, `synflow`.",
    ),
]
Data = Annotated[str, _option("--data", panel=SPACE, metavar="PATH", help="A folder or `.npz` of images, or a benchmark's table.")]
DataOptions = Annotated[
    list[str], _option("--data-option", panel=SPACE, metavar="KEY=VALUE", help="`val=5000`, `limit=20000`, `dataset=cifar100`.")
]
Engine = Annotated[
    str, _option("--engine", "-e", panel=SEARCH, metavar="NAME", help="`random`, `evolution`, `nsga2`, `memnet` or `moofa`.")
]
Preset = Annotated[
    Literal["", "smoke", "small", "paper"],
    _option(
        "--preset", panel=SEARCH, metavar="NAME", help="`smoke`: a minute on two cores; `small` (default): twenty; `paper`: as published."
    ),
]
Options = Annotated[
    list[str], _option("--option", panel=SEARCH, metavar="KEY=VALUE", help="Of the engine: `population=50`; once for each.")
]
Training = Annotated[
    list[str], _option("--train", panel=SEARCH, metavar="KEY=VALUE", help="How candidates are trained: `epochs=5`, `batch=64`, `lr=0.05`.")
]
Budget = Annotated[
    str,
    _option(
        "--budget",
        panel=SEARCH,
        metavar="AMOUNT",
        help="So many networks, `200`, or so long, `20m`. Default: the preset's, or the engine's own end.",
    ),
]
Seed = Annotated[
    int | None, _option("--seed", panel=SEARCH, metavar="N", help="Default: 0. A search with a seed gives the same result again.")
]
Workers = Annotated[
    int, _option("--workers", "-w", panel=RUN, metavar="N", least=0, help="Evaluations at once. Default: as many as there are cores.")
]
Farm = Annotated[
    Literal["processes", "ray"],
    _option("--farm", panel=RUN, metavar="KIND", help="`processes` here (default), or a `ray` cluster ($RAY_ADDRESS)."),
]
Out = Annotated[
    str, _option("--out", "-o", panel=RUN, metavar="FOLDER", help="For study, weights and the chosen network. Default: neaptide-search.")
]
Storage = Annotated[str, _option("--storage", panel=RUN, metavar="URL", help="An Optuna storage. Default: study.sqlite in the folder.")]
StudyName = Annotated[str, _option("--study", panel=RUN, metavar="NAME", help="Its name in the storage. Default: search.")]
Resume = Annotated[bool, _option("--resume", panel=RUN, help="Continue the study; what is not given is as it was.")]
Measure = Annotated[
    int | None,
    _option("--measure", panel=OUTPUT, metavar="N", least=0, help="Run so many of the front on the target. Default: 1 with a target."),
]
Database = Annotated[
    str,
    _option("--database", panel=OUTPUT, metavar="FILE", help="Of measured costs. Default: $NEAPTIDE_COSTS, else the user's data folder."),
]
Json = Annotated[bool, _option("--json", panel=OUTPUT, help="Print one line of JSON: `best`, the front, and how to find the study.")]
Html = Annotated[
    str, _option("--html", panel=OUTPUT, metavar="FILE", help="Write an interactive page of the front and each network's memory over time.")
]
Csv = Annotated[str, _option("--csv", panel=OUTPUT, metavar="FILE", help="Write the front as CSV.")]


def search(
    space: Space = "",
    engine: Engine = "",
    target: Target = "",
    constraint: Constraints = [],  # noqa: B006
    objective: Objective = "",
    data: Data = "",
    budget: Budget = "",
    preset: Preset = "",
    seed: Seed = None,
    option: Options = [],  # noqa: B006
    train: Training = [],  # noqa: B006
    space_option: SpaceOptions = [],  # noqa: B006
    data_option: DataOptions = [],  # noqa: B006
    accounting: Accounting = "",
    weights: Weights = "auto",
    workers: Workers = 0,
    farm: Farm = "processes",
    out: Out = "neaptide-search",
    storage: Storage = "",
    study: StudyName = "",
    resume: Resume = False,
    measure: Measure = None,
    database: Database = "",
    json: Json = False,
    csv: Csv = "",
    html: Html = "",
) -> int:
    """Search a space for networks that keep every limit and are best by the objectives."""
    from .search.outputs import write_front
    from .search.run import search as run
    from .targets.side_costs import SideCosts

    outputs = Outputs(csv, html)
    _load_torch()
    with Stages() as stages, SideCosts(database or None) as costs:
        try:
            result = run(
                space or None, engine or None, target=target or None, constraints=constraint or None, objectives=objective or None,
                data=data or None, budget=budget or None, preset=preset or None, seed=seed, options=_pairs("--option", option),
                training=_pairs("--train", train), space_options=_pairs("--space-option", space_option),
                data_options=_pairs("--data-option", data_option), accounting=accounting or None,
                weights=None if weights == "auto" else weights, workers=workers or None, farm=farm, folder=out, storage=storage or None,
                study=study or None, resume=resume, measure=measure, database=costs, progress=stages,
            )  # fmt: skip
        except KeyboardInterrupt:
            note(f"the study is kept; go on with: {_resuming(out, storage, study)}")
            raise
        stages("writing the chosen network")
        trained = _write_network(result, Path(out), outputs)
        if html:
            from .compiler.output_files import write_text
            from .report.search_html import render_search

            stages("drawing the front")
            outputs.write(html, lambda path: write_text(path, render_search(result)))
        outputs.write(csv, lambda path: write_front(result, path))
    if json:
        print(codec.dumps(result.to_dict(), allow_nan=False))
    else:
        from .report.search import search_view

        output().print(search_view(result), crop=False)
    if trained is False:
        note("the chosen network was not trained: weights in the ONNX file are drawn at random")
    costs.raise_lost()
    outputs.raise_failed()
    return 0


def _load_torch() -> None:
    """Load all of torch, MKL with it, while the working folder is sure to exist: a search runs for long, and MKL needs one to load."""
    import torch

    torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))


def _write_network(result: Any, folder: Path, outputs: Outputs) -> bool | None:
    """Write the files of the chosen network, and say so; a kind that needs what is not installed is left out, and said so.

    Returns whether its weights are trained; None where there are no files.
    """
    from .search.outputs import write_network

    written: list[Path] = []
    try:
        for path in () if result.best is None else write_network(result, result.best, folder):
            written.append(path)
            outputs.wrote(str(path))
    except MissingExtraError as error:
        note(f"neaptide: {error}")
    except NeaptideError as error:
        outputs.failed(error)
    return any(path.suffix == ".safetensors" for path in written) if written else None


def _pairs(option: str, texts: list[str]) -> dict[str, Any] | None:
    """`KEY=VALUE` texts; values as JSON where they are, else as text. None when there are none."""
    pairs: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{option} {text!r} is not KEY=VALUE, such as N=1")
        try:
            pairs[key.strip()] = codec.loads(value)
        except codec.JSONDecodeError:
            pairs[key.strip()] = value
    return pairs or None


def _resuming(out: str, storage: str, study: str) -> str:
    words = ["neaptide", "search", "--resume", "--out", out]
    words += ["--storage", storage] * bool(storage) + ["--study", study] * bool(study)
    return shlex.join(words)
