"""`trireid demo`: from nothing to a trained model and a page of its results, on a CPU, in minutes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from trireid.cli.console import note, progress, say
from trireid.config.load import override_config, validate
from trireid.config.read import read_mapping
from trireid.errors import RunError
from trireid.typed_json import JsonObject

NOT_AS_EXPECTED = 1
Figures = Mapping[str, Mapping[str, float]]


def run(out: Path, *, overrides: Sequence[str] = ()) -> None:
    """Write the images, measure the untrained model, train, evaluate, make the page, and compare with the floors.

    Args:
        out: gets `images-<key of the recipe>/` (used again where it is there) and a new run folder each time.
        overrides: changes of the recipe's run, `setting=value`.

    Raises:
        SystemExit: 1 where the figures are not what they should be.
        TrireidError: a setting or folder is wrong.
    """
    started = time.monotonic()
    recipe = read_recipe()
    images = write_images(out, recipe["synthetic"])
    tree: JsonObject = recipe["run"]
    tree = {**tree, "data": {**tree["data"], "root": images}, "output": free_folder(out / "run")}
    config = override_config(validate(tree), overrides)
    from trireid.cli.train import run as train

    metrics = train(config, measure_untrained=True, brief=True)
    from trireid.report.page import write_report

    with progress("writing the page", counted=False):
        page = write_report(config.output)
    say()
    say(f"images:  {images}")
    say(f"run:     {config.output}")
    say(f"page:    {page}  (open it in a browser: figures, curves, rank lists, kept patches)")
    say("next:    README.md, then `trireid train --help` and configs/ for your own data")
    good = compare(metrics["feature"], metrics["untrained"]["feature"], recipe["floors"])
    if not good and overrides:
        note(f"these figures are those of the recipe as it is; you changed {', '.join(overrides)}")
    say(f"time:    {time.monotonic() - started:.0f} s")
    if not good:
        raise SystemExit(NOT_AS_EXPECTED)


def read_recipe() -> JsonObject:
    """The packaged recipe: sections `synthetic`, `floors` and `run`."""
    with as_file(files("trireid") / "configs" / "demo.yaml") as path:
        return read_mapping(path)


def write_images(out: Path, recipe: Mapping[str, Any]) -> Path:
    """Write the synthetic set, or use the one that this version wrote by the same recipe before."""
    made_of = json.dumps([version("trireid"), recipe], sort_keys=True)
    folder = out / f"images-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    if folder.is_dir():
        note(f"using the images in {folder}, written before by the same recipe")
        return folder
    from trireid.data.synthetic import write_synthetic

    arguments = {**recipe, "image_size": tuple(recipe["image_size"])}
    with progress("writing images") as bar:
        write_synthetic(folder, **arguments, progress=bar.reach)
    return folder


def compare(trained: Figures, untrained: Figures, floors: Mapping[str, float]) -> bool:
    """Say the figures and what they should be; True where both are as they should be."""
    after, before, rank1 = trained["joint"]["mAP"], untrained["joint"]["mAP"], trained["joint"]["rank1"]
    good = after >= floors["joint_map"] and before <= floors["untrained_map"]
    say(f"trained:   joint mAP {after:.3f}, rank-1 {rank1:.3f}  (mAP should be >= {floors['joint_map']})")
    say(f"untrained: joint mAP {before:.3f}  (should be <= {floors['untrained_map']}), the same split")
    say("as it should be" if good else "NOT as it should be: please report this with environment.json of the run")
    return good


def free_folder(wanted: Path) -> Path:
    """The wanted folder, or the first of wanted-2, wanted-3, ... that does not exist.

    Raises:
        RunError: if there are a thousand already.
    """
    for number in range(1, 1000):
        candidate = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if not candidate.exists():
            return candidate
    raise RunError(f"{wanted} and 998 more like it exist; delete some, or choose another --out")
