"""The upper bound of mAP on a synthetic `hard` set with the file names of a real one: a perfect reader of some spectra.

python benchmarks/perfect_reader.py RGBNT201_test.txt [--seed 0]     (a list of image names, seconds)

Such a reader knows the look of every test identity in the spectra that it is given, without an error; equal looks are
ranked at random. The script prints its expected mAP in percent by the protocol of RGBNT201 for every subset of the
spectra, and the mean over the six cases in which one or two are withheld (docs/results.md, missing modalities).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from statistics import mean

import numpy as np

from trireid.cli.guard import guarded
from trireid.data.synthetic.difficulty import HARD
from trireid.data.synthetic.identities import draw_identities, oracle_map
from trireid.evaluation.missing import subset_cases
from trireid.types import MODALITIES


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of trireid synth")
    given = parser.parse_args()
    names = [Path(name).stem.split("_") for name in given.names.read_text(encoding="utf-8").split()]
    images = Counter((name[0], name[1]) for name in names)
    identities, cameras = (sorted(set(labels)) for labels in zip(*images, strict=True))
    drawn = draw_identities(identities, kind="person", difficulty=HARD, seed=given.seed, split="test")
    codes = np.array([drawn[identity].looks for identity in identities])
    counts = np.array([[images[identity, camera] for camera in cameras] for identity in identities])
    withheld_cases = []
    for case, withheld in subset_cases().items():
        shown = [at for at, name in enumerate(MODALITIES) if name not in withheld]
        found = 100 * oracle_map(codes, shown, counts=counts)
        withheld_cases += [found] if withheld else []
        print(f"{case:4} {found:6.1f}")
    print(f"mean of the six with something withheld {mean(withheld_cases):.1f}")


if __name__ == "__main__":
    with guarded():
        main()
