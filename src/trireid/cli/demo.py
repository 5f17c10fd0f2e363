"""`trireid demo`: a trained model and the page of its results, from nothing, on a CPU, in minutes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from trireid.cli.console import note, progress, say
from trireid.config.load import override_config, validate
from trireid.config.read import read_mapping
from trireid.errors import RunError
from trireid.names import MODALITIES
from trireid.train.run_files import CALIBRATION_FILE, ENVIRONMENT_FILE
from trireid.typed_json import JsonObject

if TYPE_CHECKING:
    from trireid.config.schema import Config

NOT_AS_EXPECTED = 1
Metrics = Mapping[str, Mapping[str, float]]


def run(out: Path, *, overrides: Sequence[str] = ()) -> None:
    """Write the images, measure the untrained model, train, evaluate, make the page, and compare with the floors.

    Args:
        out: gets `images-<hash of the recipe>/`, which is used again if it exists, and a new run folder each time.
        overrides: changes to the settings of the recipe's run, `setting=value`.

    Raises:
        SystemExit: 1 if the metrics miss their floors.
        TrireidError: a setting or folder is wrong.
    """
    started = time.monotonic()
    recipe = read_recipe()
    images = write_images(out, recipe["synthetic"])
    others = write_images(out, recipe["calibration"], "calibration")
    tree = {**recipe["run"], "output": free_folder(out / "run")}
    tree["data"] = {**tree["data"], "root": images}
    config = override_config(validate(tree), overrides)
    from trireid.cli.train import run as train

    metrics = train(config, measure_untrained=True, brief=True)
    write_calibration(config.output, others, recipe["target_fmr"])
    from trireid.report.page import write_report

    with progress("writing the page", counted=False):
        page = write_report(config.output)
    say()
    say(f"images:  {images}")
    say(f"run:     {config.output}")
    say(f"page:    {page}  (open it in a browser: metrics, curves, rank lists, kept patches)")
    say("next:    `trireid train --help` and configs/trireid/ for your own data; or search in a gallery:")
    for command in search_commands(out, config, recipe["target_fmr"]):
        say(f"  {command}")
    good = compare(metrics["feature"], metrics["untrained"]["feature"], recipe["floors"])
    if not good and overrides:
        note(f"the bounds are those of the unchanged recipe; you changed {', '.join(overrides)}")
    say(f"time:    {time.monotonic() - started:.0f} s")
    if not good:
        raise SystemExit(NOT_AS_EXPECTED)


def read_recipe() -> JsonObject:
    """The packaged recipe: sections `synthetic`, `floors` and `run`."""
    with as_file(files("trireid") / "configs" / "demo.yaml") as path:
        return read_mapping(path)


def write_images(out: Path, recipe: Mapping[str, Any], name: str = "images") -> Path:
    """Write a synthetic data set, or use the one that this version wrote from the same recipe before."""
    made_of = json.dumps([version("trireid"), recipe], sort_keys=True)
    folder = out / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    if folder.is_dir():
        note(f"using the images in {folder}, which an earlier demo wrote")
        return folder
    from trireid.data.synthetic import write_synthetic

    arguments = {**recipe, "image_size": tuple(recipe["image_size"])}
    with progress(f"writing {name}") as bar:
        write_synthetic(folder, **arguments, progress=bar.reach)
    return folder


def write_calibration(run: Path, images: Path, target_fmr: float) -> None:
    """Write the thresholds of a run, from all identities of a data set that it was not trained on."""
    from trireid.data.readers import scan
    from trireid.embedding.calibrating import calibrate
    from trireid.embedding.embedder import Embedder
    from trireid.embedding.splits import record_item

    index = scan("rgbnt201", images)
    items = [record_item(record) for record in (*index.train, *index.gallery)]
    embeddings = Embedder(run, device="cpu").embed(items)
    calibration = calibrate(embeddings, target_fmr=target_fmr)
    replace(calibration, data=str(images)).save(run / CALIBRATION_FILE)


def search_commands(out: Path, config: Config, fmr: float) -> list[str]:
    """Commands that put the test set into a gallery and look for an object that is not in it."""
    run, gallery = config.output, free_folder(out / "gallery")
    with_run = f"--run {quote(str(run))}"
    from trireid.train.inputs import scan_index

    unseen = scan_index(config).train[0]
    images = [
        f"--{name} {quote(str(source.path))}"
        for name, source in zip(MODALITIES, unseen.images, strict=True)
        if source is not None
    ]
    return [
        # With the root, `trireid serve` can show the images.
        f"trireid gallery add {quote(str(gallery))} --create {with_run} --split test "
        f"--root {quote(str(config.data.root))}",
        f"trireid gallery query {quote(str(gallery))} {with_run} --fmr {fmr} --top 3 {' '.join(images)}",
    ]


def compare(trained: Metrics, untrained: Metrics, floors: Mapping[str, float]) -> bool:
    """Print mAP of the trained and the untrained model with their bounds; True if both keep them."""
    after, before, rank1 = trained["joint"]["mAP"], untrained["joint"]["mAP"], trained["joint"]["rank1"]
    good = after >= floors["joint_map"] and before <= floors["untrained_map"]
    say(f"trained:   joint mAP {after:.3f}, rank-1 {rank1:.3f}  (expected: mAP >= {floors['joint_map']})")
    say(f"untrained: joint mAP {before:.3f}  (expected: <= {floors['untrained_map']}), same split")
    say(
        "result:    as expected"
        if good
        else f"result:    NOT as expected; please report it with {ENVIRONMENT_FILE} of the run"
    )
    return good


def free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not exist.

    Raises:
        RunError: there are a thousand already.
    """
    for number in range(1, 1000):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not candidate.exists():
            return candidate
    raise RunError(f"{folder} and 998 more like it exist; delete some, or give another --out")
