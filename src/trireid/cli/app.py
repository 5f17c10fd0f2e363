"""All commands and their options. What each does lies in its own module, imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trireid.cli.guard import guarded
from trireid.cli.show import Evaluate, show_app


class GuardedGroup(TyperGroup):
    """A group whose commands end in one line, not in a traceback, after a user's mistake."""

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
    help="Re-identification of objects seen by three spectra at once: RGB, near-infrared and thermal.",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, e.g. train.epochs=5.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Settings to change, e.g. data.root=path/to/images; repeat as needed."
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave faulty triplets out and list them; the same as data.skip_bad=true.")
]


def _overrides(settings: list[str] | None, set_: list[str] | None, *, skip_bad: bool = False) -> list[str]:
    """All settings that a command line changes, the last one winning."""
    return [*(["data.skip_bad=true"] if skip_bad else []), *(set_ or []), *(settings or [])]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"trireid {version('trireid')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    from trireid.cli.console import show_log

    show_log()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write the images and the run into.")] = Path("runs/demo"),
    settings: Overrides = None,
    set_: SetOption = None,
) -> None:
    """Write a synthetic set, train a small SDTPS model on the CPU, evaluate it, and make a page of it."""
    from trireid.cli.demo import run

    run(out, overrides=_overrides(settings, set_))


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML file of configs/trireid/, or your own.")],
    settings: Overrides = None,
    set_: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run of this output folder stopped.")
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
        bool | None, typer.Option("--rerank/--no-rerank", help="Re-ranked figures as well (k-reciprocal).")
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(help="Modalities to withhold: r, n, rn, ... or rgb,nir; all: a table of every case."),
    ] = None,
    any_to_any: Annotated[
        bool, typer.Option("--any-to-any", help="Every subset of modalities as query against every one as gallery.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the figures: .md as Markdown, else as JSON.")] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Evaluate a trained model on the query and gallery of its configuration."""
    from trireid.cli.evaluate import parse_missing, run_checkpoint

    overrides = _overrides(settings, set_, skip_bad=skip_bad)
    if rerank is not None:
        overrides.append(f"evaluate.rerank={str(rerank).lower()}")
    all_cases = missing is not None and missing.strip().lower() == "all"
    if missing is not None and not all_cases:
        overrides.append(f"evaluate.missing=[{', '.join(parse_missing(missing))}]")
    run_checkpoint(run, overrides=overrides, out=out, missing_cases=all_cases, any_to_any=any_to_any)


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or absent.")],
    layout: Annotated[str, typer.Option(help="rgbnt201, rgbnt100, msvr310 or wmveid863.")] = "rgbnt201",
    names: Annotated[
        list[Path] | None,
        typer.Option(help="List of true file names, ..._train.txt or ..._test.txt (repeat), or the folder of both."),
    ] = None,
    ids: Annotated[int | None, typer.Option(help="Identities of each split (24).")] = None,
    cameras: Annotated[int | None, typer.Option(help="Cameras, or scenes for msvr310 (2).")] = None,
    per_camera: Annotated[int | None, typer.Option(help="Triplets of an identity and camera (4).")] = None,
    difficulty: Annotated[str, typer.Option(help="easy or hard.")] = "easy",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 0,
    size: Annotated[str | None, typer.Option(help="Height x width of each image, e.g. 64x32.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 works in this one.")] = 0,
) -> None:
    """Write a deterministic synthetic data set in the layout of a published one."""
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
    format: Annotated[str, typer.Option(help="rgbnt201, rgbnt100, msvr310, wmveid863 or csv.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set, or the CSV file.")],
    exclude: Annotated[
        str, typer.Option(help="Rule of the ranking: auto, camera, scene, cross_camera or none.")
    ] = "auto",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="List faulty triplets and accept the rest, as data.skip_bad does.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Decoding threads.")] = 4,
) -> None:
    """Check every image of a data set: counts beside the published ones, every fault; exit code 2 if there is one."""
    from trireid.cli.check_data import run

    raise typer.Exit(run(format, root, exclude=exclude, skip_bad=skip_bad, workers=workers))


@app.command()
def ablate(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML file that all cells share.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs and of the table.")],
    settings: Overrides = None,
    vary: Annotated[list[str] | None, typer.Option(metavar="KEY=V1,V2", help="One axis of the grid; repeat.")] = None,
    cells: Annotated[
        Path | None, typer.Option(help="Instead of --vary: a YAML file, name and list of settings.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1 to N of every cell.")] = 3,
    parallel: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    costs: Annotated[bool, typer.Option(help="Measure multiply-adds and throughput of every cell.")] = True,
) -> None:
    """Train and evaluate a grid of settings over several seeds; what is finished is not run again."""
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
    config: Annotated[list[Path], typer.Option("--config", "-c", help="A YAML file; repeat to compare.")],
    settings: Overrides = None,
    vary: Annotated[list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Compare settings of each file.")] = None,
    cells: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file of cells, name: [KEY=VALUE, ...], as for ablate.")
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(help="inference, training, or both by repeating.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Triplets a batch (those of the settings).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed batches of each.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Batches before; 1 or more with --compile.")] = 3,
    compiled: Annotated[bool, typer.Option("--compile", help="Time models with compiled blocks.")] = False,
    record: Annotated[bool, typer.Option("--cuda-graph", help="Time replays of CUDA graphs.")] = False,
    callable_: Annotated[
        list[str] | None,
        typer.Option("--callable", metavar="MODULE:FACTORY", help="Your own factory(image_size, device) -> f(images)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the rows as JSON.")] = None,
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
        callables=callable_ or [],
        out=out,
    )


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="DeMo's state_dict, OpenAI's CLIP file, or timm weights.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write; its report goes beside it.")],
    image_size: Annotated[
        str | None, typer.Option(help="Height x width of the images the model will see (256x128).")
    ] = None,
    checkpoint_image_size: Annotated[
        str | None, typer.Option(help="Height x width the checkpoint was trained at , where that is another.")
    ] = None,
    cameras: Annotated[int | None, typer.Option(min=1, help="Cameras, where they are not those of the file.")] = None,
    sie_coefficient: Annotated[float | None, typer.Option(help="SIE_COE of the checkpoint (1).")] = None,
    sparse_ratio: Annotated[float | None, typer.Option(help="SDTPS_SPARSE_RATIO of the checkpoint (0.5).")] = None,
    beta: Annotated[float | None, typer.Option(help="SDTPS_BETA of the checkpoint (0.25).")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Unknown keys to leave out, e.g. 'extra.*'; repeat.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="rgbnt201 (without this option), rgbnt100, msvr310, wmveid863 or csv.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Name of the ViT, where the keys of timm weights do not tell.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over the target and its report.")] = False,
) -> None:
    """Turn a checkpoint of upstream into one of ours, or CLIP and timm weights into start weights; report every key."""
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
    """Write one page with the figures, curves, rank lists and kept patches of a run."""
    from trireid.cli.console import say
    from trireid.report.page import write_report

    with _writing_a_page(quiet=evaluate):
        page = write_report(run, overrides=settings or [], evaluate=evaluate, progress=evaluate)
    say(f"report: {page}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B ...", help="Run folders, two or more.")],
    out: Annotated[Path | None, typer.Option(help="The page (compare.html beside the first run).")] = None,
    set_: SetOption = None,
    evaluate: Evaluate = False,
) -> None:
    """Write one page of several runs side by side, with the queries on which they differ."""
    from trireid.cli.console import say
    from trireid.files import real_path
    from trireid.report.compare import write_comparison

    target = real_path(runs[0]).parent / "compare.html" if out is None else out
    with _writing_a_page(quiet=evaluate):
        page = write_comparison(runs, target, overrides=set_ or [], evaluate=evaluate, progress=evaluate)
    say(f"comparison: {page}")


def _writing_a_page(*, quiet: bool = False) -> Any:
    """A sign of life while a page is written, unless bars give it."""
    from contextlib import nullcontext

    from trireid.cli.console import progress

    return nullcontext() if quiet else progress("writing the page", counted=False)


app.add_typer(show_app)
