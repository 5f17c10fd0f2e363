"""All commands and their options. Each command has its own module, which is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trireid.cli.calibrate import calibrate
from trireid.cli.centring import centre
from trireid.cli.embed import Precision, embed_app
from trireid.cli.export import export
from trireid.cli.gallery import gallery_app
from trireid.cli.guard import guarded
from trireid.cli.serve import serve
from trireid.cli.show import Evaluate, show_app


class GuardedGroup(TyperGroup):
    """A group whose commands end in one line, not in a traceback, after a mistake of the user."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """Read the command line."""
        with guarded():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with guarded():
            return super().invoke(ctx)


app = typer.Typer(
    name="trireid",
    cls=GuardedGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Re-identify objects seen in three spectra at once: RGB, near-infrared and thermal.",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, e.g. data.workers=4.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting to change, e.g. data.root=path/to/images; repeat as needed."
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="List faulty triplets and leave them out, as data.skip_bad=true does.")
]


def _overrides(settings: list[str] | None, set_: list[str] | None, *, skip_bad: bool = False) -> list[str]:
    """All settings that a command line changes; the last value of a setting counts."""
    from trireid.cli.options import with_options

    given = [*(set_ or []), *(settings or [])]
    return with_options(given, {"skip_bad": True if skip_bad else None}, section="data")


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --version: also packages, device and threads, for a bug report.")
    ] = False,
) -> None:
    from trireid.cli.console import say, show_log

    if version:
        from trireid.cli.version import lines

        for line in lines(verbose=verbose):
            say(line)
        raise typer.Exit
    if verbose:
        raise typer.BadParameter("it goes with --version only", param_hint="--verbose")
    if context.invoked_subcommand is None:
        context.fail("Missing command.")
    show_log()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images and the run.")] = Path("runs/demo"),
    settings: Overrides = None,
    set_: SetOption = None,
) -> None:
    """Write a synthetic data set, train a small SDTPS model on it on the CPU, evaluate it and write its report."""
    from trireid.cli.demo import run

    run(out, overrides=_overrides(settings, set_))


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML file from configs/trireid/, or your own.")],
    settings: Overrides = None,
    set_: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder where it stopped.")
    ] = False,
    skip_bad: SkipBad = False,
) -> None:
    """Train a model and evaluate it."""
    from trireid.cli.train import run
    from trireid.config.load import load_config

    run(load_config(config, _overrides(settings, set_, skip_bad=skip_bad)), resume=resume)


@app.command("test")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder (its last checkpoint) or a .safetensors checkpoint.")],
    settings: Overrides = None,
    set_: SetOption = None,
    rerank: Annotated[
        bool | None, typer.Option("--rerank/--no-rerank", help="Also report metrics after k-reciprocal re-ranking.")
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(help="Modalities to withhold: r, rn, ... or rgb,nir; all: a table of all six cases."),
    ] = None,
    any_to_any: Annotated[
        bool,
        typer.Option("--any-to-any", help="A table: every subset of modalities as query against every one as gallery."),
    ] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also metrics per scene, camera or other column of the queries; repeat."),
    ] = None,
    centring: Annotated[
        str | None,
        typer.Option(
            help="Subtract the mean feature: train, of the training images; camera, of each gallery camera; none."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the metrics: Markdown if its name ends in .md, else JSON.")
    ] = None,
    precision: Precision = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a trained model on the query and gallery sets of its configuration."""
    from trireid.cli.evaluate import parse_missing, run_checkpoint
    from trireid.cli.options import check_centring, with_options

    check_centring(centring)
    all_cases = missing is not None and missing.strip().lower() == "all"
    withheld = None if missing is None or all_cases else parse_missing(missing)
    given = _overrides(settings, set_, skip_bad=skip_bad)
    overrides = with_options(given, {"rerank": rerank, "centring": centring, "missing": withheld})
    columns = [name.strip() for given in by or [] for name in given.split(",")]
    run_checkpoint(
        run,
        overrides=overrides,
        out=out,
        missing_cases=all_cases,
        any_to_any=any_to_any,
        by=columns,
        precision=precision,
    )


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or absent.")],
    layout: Annotated[str, typer.Option(help="rgbnt201, rgbnt100, msvr310 or wmveid863.")] = "rgbnt201",
    names: Annotated[
        list[Path] | None,
        typer.Option(
            help="A list of file names to use, ..._train.txt or ..._test.txt; repeat, or give the folder with both."
        ),
    ] = None,
    ids: Annotated[int | None, typer.Option(help="Identities per split; default 24.")] = None,
    cameras: Annotated[int | None, typer.Option(help="Cameras, or scenes for msvr310; default 2.")] = None,
    per_camera: Annotated[int | None, typer.Option(help="Triplets per identity and camera; default 4.")] = None,
    difficulty: Annotated[str, typer.Option(help="easy or hard.")] = "easy",
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same files.")] = 0,
    size: Annotated[str | None, typer.Option(help="Height x width in pixels; default: as published.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that write; 0: write in this one.")] = 0,
) -> None:
    """Write a synthetic data set in the layout of a published one; the same options give the same files."""
    from trireid.cli.synth import run

    run(
        out,
        layout=layout,
        names=names or [],
        num_ids=ids,
        num_cameras=cameras,
        per_camera=per_camera,
        difficulty=difficulty,
        seed=seed,
        size=size,
        workers=workers,
    )


@app.command("check-data")
def check_data(
    format: Annotated[str, typer.Option(help="rgbnt201, rgbnt100, msvr310, wmveid863, tno_scenes or csv.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set, or the CSV file.")],
    exclude: Annotated[
        str, typer.Option(help="Which gallery items a query must not see: auto, camera, scene, cross_camera or none.")
    ] = "auto",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="List faulty triplets and accept the rest, as data.skip_bad=true does.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.")] = 4,
) -> None:
    """Check all images: list faults (exit code 2), and counts that differ from the published ones (exit code 0)."""
    from trireid.cli.check_data import run

    raise typer.Exit(run(format, root, exclude=exclude, skip_bad=skip_bad, workers=workers))


@app.command()
def ablate(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML file that all cells start from.")],
    out: Annotated[Path, typer.Option(help="Folder for all runs and the table.")],
    settings: Overrides = None,
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V1,V2", help="A setting and values, one axis of the grid; repeat.")
    ] = None,
    cells: Annotated[
        Path | None, typer.Option(help="Instead of --vary: a YAML file with lines NAME: [KEY=VALUE, ...].")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Run every cell with the seeds 1 to N.")] = 3,
    parallel: Annotated[int, typer.Option(min=1, help="Number of runs at the same time.")] = 1,
    costs: Annotated[bool, typer.Option(help="Measure multiply-adds and throughput of every cell, too.")] = True,
) -> None:
    """Train and evaluate a grid of settings over several seeds; finished runs are not repeated."""
    from trireid.cli.ablate import run

    code = run(
        config,
        vary=vary or [],
        cells_file=cells,
        overrides=settings or [],
        seeds=seeds,
        out=out,
        parallel=parallel,
        costs=costs,
    )
    raise typer.Exit(code)


@app.command()
def bench(
    config: Annotated[list[Path], typer.Option("--config", "-c", help="A YAML file of settings; repeat to compare.")],
    settings: Overrides = None,
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Compare values of a setting, for each --config.")
    ] = None,
    cells: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A YAML file with lines NAME: [KEY=VALUE, ...], as for ablate.")
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(help="inference or training; default: both.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Triplets per batch; default: as set.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed batches per model.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed batches before them; with --compile at least 1.")] = 3,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the blocks of the models first.")] = False,
    record: Annotated[bool, typer.Option("--cuda-graph", help="Record steps as CUDA graphs and time these.")] = False,
    precision: Annotated[
        list[str] | None, typer.Option(help="For inference: fp32, bf16, fp16 or fp8; repeat to compare.")
    ] = None,
    callable_: Annotated[
        list[str] | None,
        typer.Option(
            "--callable",
            metavar="MODULE:FACTORY",
            help="A model of your own: factory(image_size, device) returns f(images).",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Measure parameters, multiply-adds, latency, throughput and memory of models, side by side."""
    from trireid.cli.bench import run

    modes = mode or ["inference", "training"]
    if set(modes) - {"inference", "training"}:
        raise typer.BadParameter(f"{modes}: allowed are inference and training", param_hint="--mode")
    run(
        config,
        overrides=settings or [],
        vary=vary or [],
        cells_file=cells,
        modes=modes,
        batch_size=batch_size,
        repeats=repeats,
        warmup=warmup,
        compile_models=compiled,
        record=record,
        precisions=precision or [],
        callables=callable_ or [],
        out=out,
    )


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A file of DeMo's state_dict, of OpenAI's CLIP, or of timm weights.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write; its report is written beside it.")],
    image_size: Annotated[
        str | None, typer.Option(help="Height x width in pixels of the model's images; default 256x128.")
    ] = None,
    checkpoint_image_size: Annotated[str | None, typer.Option(help="Height x width in training, if different.")] = None,
    cameras: Annotated[int | None, typer.Option(min=1, help="Number of cameras; default: as in the file.")] = None,
    sie_coefficient: Annotated[float | None, typer.Option(help="SIE_COE of that file; default 1.")] = None,
    sparse_ratio: Annotated[float | None, typer.Option(help="SDTPS_SPARSE_RATIO of that file; default 0.5.")] = None,
    beta: Annotated[float | None, typer.Option(help="SDTPS_BETA of that file; default 0.25.")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Unknown keys to leave out, e.g. 'extra.*'; repeat as needed."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="Data set of a DeMo checkpoint, named as for check-data; default: rgbnt201."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Name of the backbone, if the keys of timm weights do not tell.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target and its report.")] = False,
) -> None:
    """Convert a DeMo checkpoint to one of trireid, or CLIP or timm weights to start weights; report every key."""
    from trireid.cli.importing import run

    run(
        source,
        target,
        image_size=image_size,
        checkpoint_image_size=checkpoint_image_size,
        num_cameras=cameras,
        sie_coefficient=sie_coefficient,
        sparse_ratio=sparse_ratio,
        beta=beta,
        ignore=tuple(ignore) if ignore else None,
        data_format=format,
        backbone=backbone,
        overwrite=force,
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or a .safetensors checkpoint.")],
    settings: Overrides = None,
    evaluate: Evaluate = False,
) -> None:
    """Write an HTML page with the metrics, curves, rank lists and kept patches of a run."""
    from trireid.cli.console import say
    from trireid.report.page import write_report

    with _writing_a_page(quiet=evaluate):
        page = write_report(run, overrides=settings or [], evaluate=evaluate, progress=evaluate)
    say(f"report: {page}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B ...", help="Run folders, two or more.")],
    out: Annotated[Path | None, typer.Option(help="Page to write; default: compare.html by the first run.")] = None,
    set_: SetOption = None,
    evaluate: Evaluate = False,
) -> None:
    """Write an HTML page that compares several runs and shows the queries on which they differ."""
    from trireid.cli.console import say
    from trireid.files import real_path
    from trireid.report.compare import write_comparison

    target = real_path(runs[0]).parent / "compare.html" if out is None else out
    with _writing_a_page(quiet=evaluate):
        page = write_comparison(runs, target, overrides=set_ or [], evaluate=evaluate, progress=evaluate)
    say(f"comparison: {page}")


def _writing_a_page(*, quiet: bool = False) -> Any:
    """A spinner while a page is written, unless the evaluation shows progress bars."""
    from contextlib import nullcontext

    from trireid.cli.console import progress

    return nullcontext() if quiet else progress("writing the page", counted=False)


app.add_typer(embed_app)
app.add_typer(gallery_app)
app.command()(calibrate)
app.command()(centre)
app.command()(export)
app.command()(serve)
app.add_typer(show_app)
