"""What a perfect reader of some spectra can reach on a synthetic `hard` set of true file names: the ceiling of a table.

python benchmarks/perfect_reader.py RGBNT201_test.txt [--seed 0]     (a list of image names, seconds)

Such a reader sees the look of every test identity in the spectra it is shown without a fault; looks that are equal are
ranked at random. Printed is its expected mAP in per cent by the protocol of RGBNT201, for every subset of the spectra,
and its mean over the six cases in which one or two are withheld (docs/results.md, missing modalities).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from statistics import mean

from trireid.data.synthetic.difficulty import HARD
from trireid.data.synthetic.identities import Appearance, draw_identities, expected_average_precision
from trireid.evaluation.missing import subset_cases
from trireid.types import MODALITIES


def expected_map(looks: dict[str, Appearance], counts: Counter[tuple[str, str]], shown: list[int]) -> float:
    """Expected mAP in [0, 1]; counts are images by identity and camera."""
    total: Counter[str] = Counter()
    for (identity, _), number in counts.items():
        total[identity] += number
    values, weights = [], []
    for (identity, _), number in counts.items():
        alike = [
            other for other in total if all(looks[other].looks[each] == looks[identity].looks[each] for each in shown)
        ]
        positive = total[identity] - number  # the query's own camera is excluded
        tied = positive + sum(total[other] for other in alike if other != identity)
        values.append(expected_average_precision(positive, tied))
        weights.append(number)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of trireid synth")
    given = parser.parse_args()
    names = [Path(name).stem.split("_") for name in given.names.read_text(encoding="utf-8").split()]
    counts = Counter((name[0], name[1]) for name in names)
    looks = draw_identities(
        sorted({identity for identity, _ in counts}), kind="person", difficulty=HARD, seed=given.seed, split="test"
    )
    withheld_cases = []
    for case, withheld in subset_cases().items():
        found = 100 * expected_map(looks, counts, [at for at, name in enumerate(MODALITIES) if name not in withheld])
        withheld_cases += [found] if withheld else []
        print(f"{case:4} {found:6.1f}")
    print(f"mean of the six with something withheld {mean(withheld_cases):.1f}")


if __name__ == "__main__":
    main()
