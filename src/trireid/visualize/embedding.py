"""Features in the plane, by t-SNE or PCA, coloured by identity and marked by camera."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trireid.errors import InputError
from trireid.visualize.text import add_legend, shown

Method = Literal["tsne", "pca"]
MARKERS = "os^DvPX*<>hp"
LEAST = 4
"""Items that a plane needs to say anything."""


def embed_in_plane(features: Tensor, *, method: Method = "tsne", seed: int = 0) -> NDArray[np.float64]:
    """Points `(n, 2)` of features `(n, D)`, which are L2-normalised first, as the ranking does.

    Args:
        features: of any scale.
        method: `tsne` keeps neighbours near (distances between groups mean little), `pca` keeps the widest spread.
        seed: of t-SNE's start.

    Raises:
        InputError: fewer than `LEAST` items, or an unknown method.
    """
    if len(features) < LEAST:
        raise InputError(f"{len(features)} features are too few to draw; at least {LEAST} are needed")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    unit = functional.normalize(features.double(), dim=-1).numpy()
    if method == "pca":
        return np.asarray(PCA(n_components=2, random_state=seed).fit_transform(unit))
    if method != "tsne":
        raise InputError(f"method is {method!r}; allowed are tsne and pca")
    perplexity = min(30.0, (len(features) - 1) / 3)
    start = "pca" if min(unit.shape) >= 2 else "random"
    return np.asarray(TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(unit), dtype=float)


def embedding_figure(
    points: NDArray[np.float64], identities: Sequence[str], cameras: Sequence[str | None], *, title: str = ""
) -> Figure:
    """Draw points, one colour per identity and one marker per camera.

    Args:
        points: `(n, 2)`.
        identities: one per point. cameras: one per point, None where not known.
        title: written above.

    Returns:
        A figure with both legends; nothing is saved.
    """
    names = sorted(set(identities))
    places = sorted({camera or "not known" for camera in cameras})
    palette = matplotlib.colormaps["tab10" if len(names) <= 10 else "turbo"]
    shades = [palette(index if len(names) <= 10 else index / (len(names) - 1)) for index in range(len(names))]
    figure = Figure(figsize=(8, 6), layout="constrained", dpi=130)
    axis = figure.subplots()
    for place_index, place in enumerate(places):
        marker = MARKERS[place_index % len(MARKERS)]
        for name, color in zip(names, shades, strict=True):
            rows = [
                row
                for row, (own, camera) in enumerate(zip(identities, cameras, strict=True))
                if own == name and (camera or "not known") == place
            ]
            if rows:
                axis.scatter(
                    points[rows, 0],
                    points[rows, 1],
                    s=34,
                    color=[color],
                    marker=marker,
                    edgecolors="white",
                    linewidths=0.5,
                )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(shown(title), fontsize=10, parse_math=False)
    shapes = [
        Line2D([], [], marker=MARKERS[index % len(MARKERS)], color="#555555", linestyle="")
        for index in range(len(places))
    ]
    beside = {"bbox_to_anchor": (1.01, 1.0), "fontsize": 8}
    first = add_legend(axis, shapes, places, title="camera", loc="upper left", **beside)
    axis.add_artist(first)
    first.set_clip_on(False)  # what an axis clips is no part of its layout, and the legend lies beside it
    colors = [Line2D([], [], marker="o", color=color, linestyle="") for color in shades]
    beside["bbox_to_anchor"] = (1.01, 0.0)
    add_legend(axis, colors, names, title="identity", loc="lower left", ncols=-(-len(names) // 16), **beside)
    return figure
