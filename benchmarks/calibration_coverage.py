"""How often a calibration keeps its promise: calibrate on one half of the identities, observe on the other half.

    python benchmarks/calibration_coverage.py <RUN> --scenes <FOLDER> --weights <FILE> --splits 100 --replicates 400

<RUN> is the run of `trireid demo`. Two sets that the models were not trained on:

- synthetic: 400 identities of `trireid synth` with another seed, embedded by that run;
- scenes: a folder in the layout of RGBNT201 with real images, all identities of both splits, embedded by a frozen
  DINOv2 ViT-S/14 (<FILE>: weights of vit_small_patch14_dinov2) at 112 x 112, without a head.

The identities are split into two halves at random, again and again. Of each split the false match rate on the second
half, at the threshold that the first half gives for a target, is compared with the target and with the interval that
`PairRates.expected_interval` promises for other identities; each half has no identity of the other. The splits of one
set share their identities, so that their number is not a number of independent trials.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import trireid
from trireid.cli.guard import guarded
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.data.readers import scan
from trireid.data.synthetic import write_synthetic
from trireid.embedding.embedder import Embedder
from trireid.embedding.embeddings import Embeddings
from trireid.embedding.splits import record_item
from trireid.embedding.unseen import embed_presences
from trireid.evaluation.calibration import PairRates
from trireid.files import write_json
from trireid.models.build import build_model
from trireid.train.checkpoint import Checkpoint, config_here, load_checkpoint

TARGETS = (0.1, 0.03, 0.01, 0.003)
PRESENCES = ("rnt", "r", "n", "t")
RESULTS = Path(__file__).parent / "results" / "calibration_coverage.json"


def synthetic_embeddings(run: Path) -> list[Embeddings]:
    """The synthetic set by the run of the demo: every subset of modalities."""
    checkpoint = load_checkpoint(run)
    config = config_here(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        write_synthetic(
            root,
            layout="rgbnt201",
            num_ids=200,
            num_cameras=2,
            per_camera=3,
            seed=77,
            image_size=config.data.image_size,
            workers=0,
        )
        config = override_config(config, [f"data.root={root}"])
        return embedded(checkpoint, root, config, all_presences=True)


def frozen_checkpoint(root: Path, weights: Path) -> Checkpoint:
    """A frozen DINOv2 ViT-S/14 without a head, as a run on a folder of images would leave it."""
    settings = ["model.backbone.name=dinov2_vit_s14", "model.head=none", "data.image_size=[112,112]"]
    config = override_config(Config(), [*settings, f"data.root={root}", "evaluate.batch_size=32"])
    pretrained = override_config(config, [f"model.backbone.pretrained={weights}"])
    model = build_model(pretrained.model, image_size=(112, 112), num_classes=0, num_cameras=0)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("classifiers.")}
    return Checkpoint(Path("frozen") / weights.name, state, config, LabelMap((), ()), epoch=0)


def scene_embeddings(root: Path, weights: Path) -> list[Embeddings]:
    """The scenes by a frozen backbone."""
    checkpoint = frozen_checkpoint(root, weights)
    (whole,) = embedded(checkpoint, root, checkpoint.config, all_presences=False)
    width = whole.model.width // 3  # without a head, the block of a modality does not depend on the others
    parts = [whole]
    for letters in PRESENCES[1:]:
        present = np.tile([letter in letters for letter in "rnt"], (len(whole), 1))
        parts.append(replace(whole, vectors=whole.vectors * np.repeat(present, width, axis=1), present=present))
    return parts


def embedded(checkpoint: Checkpoint, root: Path, config: Config, *, all_presences: bool) -> list[Embeddings]:
    """All records of both splits."""
    index = scan("rgbnt201", root)
    items = [record_item(record) for record in dict.fromkeys((*index.train, *index.query, *index.gallery))]
    embedder = Embedder(checkpoint, device=config.train.device, batch_size=config.evaluate.batch_size)
    return embed_presences(embedder, items, all_presences=all_presences, progress=True)


def cached(cache: Path | None, name: str, make: Callable[[], list[Embeddings]]) -> list[Embeddings]:
    """The embeddings that a cache holds, or new ones, which it then holds."""
    if cache is None:
        return make()
    if not (cache / f"{name}-0.csv").exists():
        for number, part in enumerate(make()):
            part.save(cache / f"{name}-{number}")
    return [Embeddings.load(path) for path in sorted(cache.glob(f"{name}-*.csv"))]


def letters_of(part: Embeddings) -> str:
    """The modalities of a part, whose items all have the same."""
    return "".join(letter for letter, there in zip("rnt", part.present[0], strict=True) if there)


def observed_rate(first: Embeddings, second: Embeddings, threshold: float) -> float:
    """The share of pairs of different identities whose cosine over the shared blocks is at least a threshold."""
    shared = np.array(
        [all(part.present[0][list(block)].any() for part in (first, second)) for block in first.model.blocks]
    )
    sides = []
    for part in (first, second):
        vectors = np.asarray(part.vectors, dtype=np.float64).reshape(len(part), len(shared), -1)[:, shared]
        vectors = vectors.reshape(len(part), -1)
        sides.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    identities = [np.array([item.identity for item in part.items]) for part in (first, second)]
    different = identities[0][:, None] != identities[1]
    return float((sides[0] @ sides[1].T >= threshold)[different].mean())


def one_split(parts: list[Embeddings], seed: int, replicates: int) -> Iterator[dict[str, Any]]:
    """Calibrate on half of the identities and observe on the others, for each pair of presences and target."""
    names = np.array([item.identity for item in parts[0].items])
    chosen = np.random.default_rng(seed).permutation(np.unique(names))
    half = set(chosen[: len(chosen) // 2].tolist())
    sides = [[], []]  # type: list[list[Embeddings]]
    for part in parts:
        is_chosen = np.array([item.identity in half for item in part.items])
        sides[0].append(part.select(is_chosen))
        sides[1].append(part.select(~is_chosen))
    calibration = trireid.calibrate(*sides[0], replicates=replicates, seed=seed)
    others = {letters_of(part): part for part in sides[1]}
    for rates in calibration.rates:
        for target in TARGETS:
            if target >= rates.lowest:
                yield promise_and_outcome(rates, target, others, num_others=len(chosen) - len(half))


def promise_and_outcome(
    rates: PairRates, target: float, others: dict[str, Embeddings], *, num_others: int
) -> dict[str, Any]:
    """What is promised for a target, and what the other identities show."""
    low, high = rates.expected_interval(target, num_others)
    observed = observed_rate(others[rates.first], others[rates.second], float(rates.cosine[rates.place(target)]))
    return {
        "pair": f"{rates.first} {rates.second}",
        "target": target,
        "observed": observed,
        "inside": low <= observed <= high,
        "above": observed > high,
        "at_most_target": observed <= target,
        "width": high / target,
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares and means over the splits, for each pair of presences and target."""
    kinds = dict.fromkeys((row["pair"], row["target"]) for row in rows)
    table = []
    for pair, target in kinds:
        own = [row for row in rows if (row["pair"], row["target"]) == (pair, target)]
        means = {name: fmean(row[name] for row in own) for name in ("observed", "inside", "above", "at_most_target")}
        ends = fmean(row["width"] for row in own)
        table.append({"pair": pair, "target": target, "splits": len(own), **means, "upper_end_by_target": ends})
    return table


def main() -> None:
    """Print the coverage of both sets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    sets = {
        "synthetic": cached(given.cache, "synthetic", lambda: synthetic_embeddings(given.run)),
        "scenes": cached(given.cache, "scenes", lambda: scene_embeddings(given.scenes, given.weights)),
    }
    results: dict[str, Any] = {"splits": given.splits, "replicates": given.replicates, "confidence": 0.95}
    for name, parts in sets.items():
        parts = [part for part in parts if letters_of(part) in PRESENCES]
        rows = [row for seed in range(given.splits) for row in one_split(parts, seed, given.replicates)]
        results[name] = {"items": len(parts[0]), "rates": summary(rows)}
        print(f"{name}: {len(parts[0])} items")
        for row in results[name]["rates"]:
            print(
                "  " + "  ".join(f"{key} {value:.3g}" if key != "pair" else f"{value:8}" for key, value in row.items())
            )
    write_json(given.out, results)


if __name__ == "__main__":
    with guarded():
        main()
