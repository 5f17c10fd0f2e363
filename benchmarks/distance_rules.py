"""Rules for the distance of items that lack different modalities, compared on the features of trained runs.

    python benchmarks/distance_rules.py extract FOLDER --out FEATURES [--parallel N] [--width 96]
    python benchmarks/distance_rules.py compare FEATURES --out TABLES
    python benchmarks/distance_rules.py summarise TABLES --out JSON

`extract` writes one file for each run `CELL/seedN` (of `trireid ablate`) with its features of all seven subsets of the
spectra; blocks are projected to their first principal directions, which leaves inner products as they are (the share
of their squares that is lost is printed). `compare` ranks every subset, and a mixture of all, against every subset and
a mixture, by each rule: mAP and rank-1. Queries are the gallery. `summarise` takes means over seeds
(docs/missing.md, "Why the length of a block does not count").
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from trireid.ablation import visible_devices
from trireid.cli.guard import guarded
from trireid.evaluation.metrics import rank_metrics
from trireid.evaluation.missing import subset_cases
from trireid.evaluation.protocols import take
from trireid.evaluation.subsets import rank_case, without_blocks
from trireid.files import write_json, write_text
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
from trireid.train.evaluating import extract_split
from trireid.train.inputs import open_test, scan_index
from trireid.types import MODALITIES, Blocks, Labels, Protocol, filled_blocks

CASES = subset_cases()


def extract(run: Path, out: Path, width: int) -> None:
    """Write the features of one run by subset, `(n, K, width)` float16 of the filled blocks."""
    checkpoint = load_checkpoint(run)
    config = checkpoint.config
    device = resolve_device(config.train.device)
    dtype = autocast_dtype(resolve_precision(config.train.precision, device))
    model = build_for(checkpoint, config).to(device)
    split = open_test(config, scan_index(config), checkpoint.label_map, device=device)
    rankings = {}
    for shown, withheld in CASES.items():
        ranking = extract_split(
            model, split, settings=config.evaluate, device=device, dtype=dtype, progress=False, withheld=withheld
        )
        assert ranking is not None
        assert ranking.query_is_gallery, "only sets whose queries are the gallery"
        rankings[shown] = replace(ranking, normalise=True)
    sets = {shown: ranking.query.features for shown, ranking in rankings.items()}
    blocks = sets["rnt"].blocks
    tensors = {f"label/{name}": value for name, value in vars(split.query_labels).items()}
    lost = 0.0
    for name in ("global", "head"):
        if name not in blocks:
            continue
        whole = {shown: each.features[name].unflatten(1, (len(blocks[name]), -1)) for shown, each in sets.items()}
        for k in range(len(blocks[name])):
            filled = {
                shown: value[:, k].double()
                for shown, value in whole.items()
                if bool(filled_blocks(blocks[name], sets[shown].present)[0, k])
            }
            everything = torch.cat(list(filled.values()))
            kept = min(width, everything.shape[1])
            if name == "global":  # of each spectrum alone: the same in all subsets, but for rounding
                first = next(iter(filled.values()))
                if all(float((each - first).square().sum() / first.square().sum()) < 1e-3 for each in filled.values()):
                    filled = {"all": first}
            basis = torch.linalg.eigh(everything.T @ everything).eigenvectors[:, -kept:]
            short = everything @ basis
            lost = max(lost, 1 - float(short.square().sum() / everything.square().sum()))
            for shown, value in filled.items():
                tensors[f"{name}/{k}/{shown}"] = (value @ basis).half()
    checked: dict[str, dict[str, list[float]]] = {"present": {}, "whole": {}}
    for query, one in rankings.items():
        for gallery, other in rankings.items():
            pair = replace(one, gallery=other.gallery)
            for rule, ranking in (("present", pair), ("whole", without_blocks(pair))):
                found = rank_case(ranking, device=device, names=["joint"])["joint"]
                checked[rule][f"{query} {gallery}"] = [found["mAP"], found["rank1"]]
    metadata = {
        "checked": json.dumps(checked),
        "run": f"{run.parent.parent.name}/{run.parent.name}/{run.name}",
        "blocks": json.dumps({name: blocks[name] for name in ("global", "head") if name in blocks}),
        "exclude": split.protocol.exclude,
        "lost": f"{lost:.2e}",
        "metrics": (run / "metrics.json").read_text() if (run / "metrics.json").is_file() else "{}",
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, out, metadata)
    print(metadata["run"], "largest share of squares lost", metadata["lost"], flush=True)


@dataclass(frozen=True)
class Side:
    """Some items: blocks `(n, K, width)` with zeros for what is absent, which are filled `(n, K)`, squared lengths."""

    value: Tensor
    filled: Tensor
    squares: Tensor
    identity: Tensor
    blocks: Blocks

    @property
    def flat(self) -> Tensor:
        """Whole features."""
        return self.value.flatten(1)

    @property
    def usual(self) -> Tensor:
        """Mean squared length of each block, over the items that have it: `(K,)`."""
        return self.squares.sum(dim=0) / self.filled.sum(dim=0).clamp(min=1)

    @property
    def mean(self) -> Tensor:
        """Mean of each block over the items that have it: `(K, width)`."""
        return self.value.sum(dim=0) / self.filled.sum(dim=0).clamp(min=1)[:, None]

    @property
    def unrelated(self) -> Tensor:
        """As `presence.unrelated_cosine`."""
        count = self.filled.sum(dim=0)
        product = self.value.sum(dim=0).square().sum(dim=1) - self.squares.sum(dim=0)
        several = count > 1
        return (product / (count * (count - 1)))[several].sum() / self.usual[several].sum()

    def around(self, centre: Tensor) -> Side:
        """The same less the centre `(K, width)`."""
        return side((self.value - centre) * self.filled[:, :, None], self)


def side(value: Tensor, like: Side) -> Side:
    """The same items with other blocks."""
    return replace(like, value=value, squares=value.square().sum(dim=2))


def agreement(items: Side) -> float:
    """How far spectra agree on which items are alike: mean correlation of cosines by blocks of disjoint spectra."""
    some = torch.linspace(0, len(items.filled) - 1, min(300, len(items.filled))).long()
    unit = functional.normalize(items.value[some], dim=2).transpose(0, 1)
    filled = items.filled[some].T.bool()  # (K, n)
    cosine = unit @ unit.transpose(1, 2)  # (K, n, n)
    above = torch.ones(cosine.shape[1:], dtype=torch.bool).triu(1)
    found = []
    for first, second in combinations(range(len(items.blocks)), 2):
        both = filled[first] & filled[second]
        if not set(items.blocks[first]) & set(items.blocks[second]) and int(both.sum()) > 10:
            pairs = both[:, None] & both & above
            found.append(torch.stack([cosine[first][pairs], cosine[second][pairs]]).corrcoef()[0, 1])
    return float(torch.stack(found).mean()) if found else 1.0


def shared_cosine(query: Side, gallery: Side) -> tuple[Tensor, Tensor]:
    """Cosine over shared blocks, and the product of the lengths there: `(Q, G)` each."""
    lengths = ((query.squares @ gallery.filled.T) * (query.filled @ gallery.squares.T)).clamp(min=1e-12).sqrt()
    return query.flat @ gallery.flat.T / lengths, lengths


def shrunk(cosine: Tensor, query: Side, gallery: Side) -> Tensor:
    """Towards the unrelated, by the square root of the share of blocks that a pair has."""
    weight = (query.filled @ gallery.filled.T / query.filled.shape[1]).sqrt()
    return weight * cosine + (1 - weight) * gallery.unrelated


def present(query: Side, gallery: Side) -> Tensor:
    """As `presence.shared_distance`: the cosine over shared blocks, shrunk towards the unrelated."""
    return shrunk(shared_cosine(query, gallery)[0], query, gallery)


def whole(query: Side, gallery: Side) -> Tensor:
    """The cosine of whole features, zeros for what is absent."""
    return query.flat @ gallery.flat.T / (query.squares.sum(dim=1)[:, None] * gallery.squares.sum(dim=1)).sqrt()


def by_length(power: float, query: Side, gallery: Side) -> Tensor:
    """`present` with the cosine times (length of the shared part / whole length / what is usual) to some power."""
    usual = gallery.usual
    share = (query.filled @ gallery.squares.T) / gallery.squares.sum(dim=1)
    expected = (query.filled @ (gallery.filled * usual).T) / (gallery.filled @ usual)
    factor = (share / expected.clamp(min=1e-12)).clamp(min=1e-12) ** (power / 2)
    return shrunk(shared_cosine(query, gallery)[0] * factor, query, gallery)


def by_length_where_unlike(query: Side, gallery: Side) -> Tensor:
    """`by_length` by 0.3 where spectra do not agree at all, down to 0 where they agree by 0.2."""
    return by_length(0.3 * max(0.0, 1.0 - agreement(gallery) / 0.2), query, gallery)


def filled_by_mean(query: Side, gallery: Side) -> Tensor:
    """Whole cosine with the gallery's mean block for what is absent, and its mean square in the length."""
    one, other = ((each.value + (1 - each.filled)[:, :, None] * gallery.mean).flatten(1) for each in (query, gallery))
    lengths = [each.squares.sum(dim=1) + (1 - each.filled) @ gallery.usual for each in (query, gallery)]
    return one @ other.T / (lengths[0][:, None] * lengths[1]).sqrt()


def centred_by_length(query: Side, gallery: Side) -> Tensor:
    """Around the gallery's mean: cosine over shared blocks times the root of their share of the lengths."""
    one, other = query.around(gallery.mean), gallery.around(gallery.mean)
    cosine, lengths = shared_cosine(one, other)
    both = [each.squares.sum(dim=1) + (1 - each.filled) @ other.usual for each in (one, other)]
    return cosine * (lengths / (both[0][:, None] * both[1]).sqrt()).sqrt()


def block_cosines(query: Side, gallery: Side) -> Tensor:
    """`present` with all blocks at length 1."""
    sides = [side(functional.normalize(each.value, dim=2), each) for each in (query, gallery)]
    return present(*sides)


def any_of_an_identity(query: Side, gallery: Side) -> Tensor:
    """A control that knows nothing of a pair: `present` and a random number for each identity of the gallery."""
    spread = torch.randn(int(gallery.identity.max()) + 1, generator=torch.Generator().manual_seed(0))
    return shrunk(shared_cosine(query, gallery)[0] + 0.02 * spread[gallery.identity], query, gallery)


RULES: dict[str, Callable[[Side, Side], Tensor]] = {
    "present": present,
    "whole": whole,
    "length 0.2": partial(by_length, 0.2),
    "length 0.5": partial(by_length, 0.5),
    "length, gated": by_length_where_unlike,
    "mean for absent": filled_by_mean,
    "centred": centred_by_length,
    "block cosines": block_cosines,
    "control": any_of_an_identity,
}


def read_sets(path: Path, feature: str) -> tuple[dict[str, Side], Labels, dict[str, str]]:
    """Items by subset, with `mixed` (every item out of a random one), of the joint feature or a part of it."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        blocks = json.loads(metadata["blocks"])
        names = tuple(blocks) if feature == "joint" else (feature,)
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    labels = Labels(**{name: stored[f"label/{name}"] for name in ("identity", "camera", "scene", "item")})
    width = max(value.shape[1] for name, value in stored.items() if not name.startswith("label/"))
    sets: dict[str, Side] = {}
    for shown in CASES:
        own = torch.tensor([[name[0] in shown for name in MODALITIES]])
        parts = []
        for name in names:
            for k in range(len(blocks[name])):
                value = stored.get(f"{name}/{k}/{shown}", stored.get(f"{name}/{k}/all"))
                is_filled = bool(filled_blocks(blocks[name], own)[0, k])
                part = torch.zeros(len(labels), width)
                if is_filled and value is not None:
                    part[:, : value.shape[1]] = value.float()
                parts.append((part, torch.full((len(labels),), float(is_filled))))
        value, filled = (torch.stack(each, dim=1) for each in zip(*parts, strict=True))
        made_of = tuple(tuple(block) for name in names for block in blocks[name])
        sets[shown] = Side(value, filled, value.square().sum(dim=2), labels.identity, made_of)
    for number, name in enumerate(("mixed", "mixed queries")):
        chosen = torch.randint(len(CASES), (len(labels),), generator=torch.Generator().manual_seed(number))
        row = torch.arange(len(labels))
        sets[name] = replace(
            sets["rnt"],
            **{
                of: torch.stack([getattr(sets[case], of) for case in CASES])[chosen, row]
                for of in ("value", "filled", "squares")
            },
        )
    return sets, labels, metadata


def compare_one(path: Path, feature: str, protocol: Protocol, queries: int) -> dict[str, dict[str, list[float]]]:
    """`{"query gallery": {rule: [mAP, rank-1]}}` of one run, in percent."""
    sets, labels, _ = read_sets(path, feature)
    rows = torch.linspace(0, len(labels) - 1, min(queries, len(labels))).long()
    query_labels = take(labels, rows)
    table: dict[str, dict[str, list[float]]] = {}
    for one in (*CASES, "mixed"):
        every = sets["mixed queries" if one == "mixed" else one]
        query = replace(every, **{of: getattr(every, of)[rows] for of in ("value", "filled", "squares", "identity")})
        for other in (*CASES, "mixed"):
            if not bool((query.filled.any(dim=0) & sets[other].filled.any(dim=0)).any()):
                continue
            found = table.setdefault(f"{one} {other}", {})
            for name, rule in RULES.items():
                metrics = rank_metrics(-rule(query, sets[other]), query_labels, labels, protocol)
                found[name] = [round(100 * metrics.mAP, 3), round(100 * metrics.rank1, 3)]
    return table


def compare(folder: Path, out: Path, queries: int) -> None:
    """Write the tables of all runs under both exclusions."""
    tables: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    for path in sorted(folder.glob("*.safetensors")):
        for exclude in ("camera", "cross_camera"):
            key = f"{path.stem.replace('head=', '')} {exclude}"
            if key not in tables:
                protocol = Protocol(exclude, exclude)
                tables[key] = {"joint": compare_one(path, "joint", protocol, queries)}
                write_json(out, tables)
                print(key, flush=True)


def summarise(tables: Path, out: Path) -> None:
    """Write `{"data.head exclusion": {"query gallery": {rule: [mAP, its deviation over seeds, rank-1]}}}`."""
    runs: dict[str, list[dict[str, dict[str, list[float]]]]] = {}
    for name, table in json.loads(tables.read_text()).items():
        run, exclude = name.split()
        runs.setdefault(f"{run.rsplit('.', 1)[0]} {exclude}", []).append(table["joint"])
    lines = []
    for name, found in sorted(runs.items()):
        cells = {}
        for cell, rules in found[0].items():
            values = {rule: torch.tensor([table[cell][rule] for table in found]) for rule in rules}
            cells[cell] = {
                rule: [round(float(x), 1) for x in (each[:, 0].mean(), each[:, 0].std(), each[:, 1].mean())]
                for rule, each in values.items()
            }
        inner = ",\n".join(f"  {json.dumps(cell)}: {json.dumps(values)}" for cell, values in cells.items())
        lines.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
    write_text(out, "{\n" + ",\n".join(lines) + "\n}\n")


def extract_all(folder: Path, out: Path, width: int, parallel: int) -> None:
    """Write the features of all runs of a folder, each by a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    devices = visible_devices()
    running: list[subprocess.Popen[bytes]] = []
    for number, run in enumerate(path.parent for path in sorted(folder.glob("**/seed*/metrics.json"))):
        environment = dict(os.environ)
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        if len(running) == parallel:
            running.pop(0).wait()
        target = out / f"{'.'.join(run.relative_to(folder).parts)}.safetensors"
        command = [sys.executable, __file__, "extract", str(run), "--out", str(target), "--width", str(width)]
        running.append(subprocess.Popen(command, env=environment))
    for process in running:
        process.wait()


def main() -> None:
    """Extract or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("extract", "compare", "summarise"))
    parser.add_argument("folder", type=Path, help="of runs or features; or the file of tables")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--queries", type=int, default=2000, help="of each set at most, evenly taken")
    parser.add_argument("--parallel", type=int, default=1)
    given = parser.parse_args()
    if given.what == "extract" and (given.folder / "metrics.json").is_file():
        extract(given.folder, given.out, given.width)
    elif given.what == "extract":
        extract_all(given.folder, given.out, given.width, given.parallel)
    elif given.what == "summarise":
        summarise(given.folder, given.out)
    else:
        compare(given.folder, given.out, given.queries)


if __name__ == "__main__":
    with guarded():
        main()
