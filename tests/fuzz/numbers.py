"""Numbers: the public functions and a model with odd tensors and arrays; a result in its range, or an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

import trireid
from fuzz.package import tiny_tree
from fuzz.runner import Case, Kind
from fuzz.sandbox import WrongResult
from tiny_run import untrained_run
from trireid.evaluation.evaluate import ranking_distance
from trireid.evaluation.metrics import pairwise_distance, rank_metrics, ranked_list
from trireid.evaluation.rerank import k_reciprocal_distance
from trireid.evaluation.verification import equal_error
from trireid.types import EXCLUSION_FIELD, Labels, Protocol

VALUES = (float("nan"), float("inf"), float("-inf"), 1e8, 1e10, 1e30, 3e38, -3e38, 1e-45, 0.0, -0.0, -1.0, 1.0)
TYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
)
WIDTH, QUERIES, GALLERY = 16, 8, 24
SETTINGS: dict[str, tuple[Any, ...]] = {
    "top": (0, -1, 1, 10**9, 2.5, True, None), "chunk_size": (0, 1, -5, 10**12, 2.5), "query_chunk_size": (0, 1,
    10**12), "normalise": (True, False), "k1": (0, 1, 2.5, 10**12, -1), "k2": (0, 1, 1000, 2.5), "lambda_value": (-0.1,
    0, 1, 1.1, float("nan")), "num_neighbours": (0, 1, 10**9, 2.5), "alpha": (-1, 0, 100.0, float("nan"), float("inf"),
    1e30), "ranks": ((), (0,), (10**6,), (1.5,), (1,)), "max_rank": (0, -5, 1, 10**6),
}  # fmt: skip


def prepare(folder: Path) -> None:
    """A model to call."""
    untrained_run(tiny_tree(folder / "data"), folder / "run")


def _draw(random: Random, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(random.getrandbits(60)))


def labels(random: Random, count: int) -> Labels:
    """Labels of some items, sometimes all alike, unknown, huge, of another type or one too few."""
    item = torch.arange(count)
    identity, camera, scene = item % random.choice((1, 4)), (item // 4) % 3, item % 2
    columns = [identity, camera, scene, item]
    way = random.random()
    if way < 0.1:
        columns = [torch.full((count,), random.choice((-1, -7, 2**62, 0))) for _ in columns]
    elif way < 0.15:
        columns = [column.to(random.choice((torch.int32, torch.float32, torch.bool))) for column in columns]
    elif way < 0.2:
        columns = [column[:-1] for column in columns]
    elif way < 0.25:
        columns[random.randrange(4)] = torch.zeros(count + 1).long()
    return Labels(*columns)


def features(case: Case, count: int, *, numpy: bool = False) -> Any:
    """Features with odd values, types, shapes or layouts."""
    random, result = case.random, _draw(case.random, count, WIDTH)
    way = random.random()
    if way < 0.35:
        value, where = random.choice(VALUES), random.choice(("one", "row", "column", "all"))
        case.describe(where, value)
        rows, columns = random.randrange(count), random.randrange(WIDTH)
        result[
            rows if where in ("one", "row") else slice(None), columns if where in ("one", "column") else slice(None)
        ] = value
    elif way < 0.5:
        kind = random.choice(TYPES)
        case.describe(kind)
        result = result.to(kind)
    elif way < 0.65:
        shape = random.choice(
            ((0, WIDTH), (count, 0), (0, 0), (count, WIDTH // 2), (WIDTH,), (1, count, WIDTH), (), (1, 1), (1, WIDTH))
        )
        case.describe(shape)
        result = _draw(random, *shape)
    elif way < 0.75:
        result = random.choice((
            _draw(random, count, 2 * WIDTH)[:, ::2], _draw(random, WIDTH, count).T, result[:1].expand(count, WIDTH),
            result.clone().requires_grad_(), torch.empty(count, WIDTH, device="meta"), result.to_sparse(),
        ))  # fmt: skip
    if numpy and way > 0.75:
        return odd_array(random, result.detach().numpy())
    return random.choice((None, result.tolist(), "x", 5)) if way > 0.97 else result


def odd_array(random: Random, array: np.ndarray) -> Any:
    """The same as numpy has it: other types, orders of bytes and strides."""
    fixed = array.copy()
    fixed.setflags(write=False)
    return random.choice((
        array.astype(np.float16), array.astype(np.float64), array.astype(">f4"), array.astype(np.int32),
        array.astype(object), array.astype(str), np.asfortranarray(array), array[::-1], fixed, array.tolist(),
        np.full_like(array, np.nan), array.astype(np.longdouble), (array * 100).astype(np.uint16),
        array.astype("datetime64[s]"), array.astype(complex),
    ))  # fmt: skip


def settings(case: Case, *names: str) -> dict[str, Any]:
    """Mostly none of the settings of a function, sometimes one or two at an odd value."""
    chosen = case.random.sample(names, case.random.choice((0, 0, 0, 1, 1, 2)) if len(names) > 1 else 0)
    given = {name: case.random.choice(SETTINGS[name]) for name in chosen}
    case.describe(given)
    return given


PROTOCOLS = tuple(Protocol(exclude, exclude) for exclude in EXCLUSION_FIELD)


def no_nan(*tensors: Tensor) -> None:
    """A result without a NaN in it."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.device.type != "meta" and bool(tensor.isnan().any()):
            raise WrongResult(f"NaN in a result of shape {tuple(tensor.shape)}")


def a_search(case: Case) -> None:
    """`search`."""
    query, gallery = features(case, QUERIES), features(case, GALLERY, numpy=True)
    sides = (labels(case.random, QUERIES), labels(case.random, GALLERY)) if case.random.random() < 0.5 else (None, None)
    protocol = case.random.choice(PROTOCOLS)
    given = settings(case, "top", "chunk_size", "query_chunk_size", "normalise")
    found = trireid.search(query, gallery, *sides, protocol, **given)
    no_nan(found.distance)


def re_ranking(case: Case) -> None:
    """`k_reciprocal`, and the same of distances."""
    if case.random.random() < 0.7:
        gallery = features(case, GALLERY) if case.random.random() < 0.8 else None
        result = trireid.k_reciprocal(
            features(case, QUERIES), gallery, **settings(case, "k1", "k2", "lambda_value", "chunk_size")
        )
    else:
        sides = [distances(case, *shape) for shape in ((QUERIES, GALLERY), (QUERIES, QUERIES), (GALLERY, GALLERY))]
        result = k_reciprocal_distance(*sides, **settings(case, "k1", "k2", "lambda_value"))
    no_nan(result)


def expansion(case: Case) -> None:
    """`average_query_expansion`."""
    gallery = features(case, GALLERY) if case.random.random() < 0.8 else None
    given = settings(case, "num_neighbours", "alpha", "chunk_size")
    no_nan(trireid.average_query_expansion(features(case, QUERIES), gallery, **given))


def distance(case: Case) -> None:
    """`pairwise_distance` and `ranking_distance`."""
    query, gallery = features(case, QUERIES), features(case, GALLERY)
    if case.random.random() < 0.5:
        no_nan(pairwise_distance(query, gallery, **settings(case, "chunk_size", "chunk_size")))
    else:
        no_nan(ranking_distance(query, gallery, normalise=case.random.random() < 0.5))


def distances(case: Case, rows: int, columns: int) -> Tensor:
    """A matrix of distances with odd values, types or shapes."""
    random, result = case.random, _draw(case.random, rows, columns).abs()
    way = random.random()
    if way < 0.3:
        value = random.choice(VALUES)
        case.describe("distance", value)
        place = random.choice(((1, 2), (1, slice(None)), (slice(None), 2), (slice(None), slice(None))))
        result[place] = value
    elif way < 0.4:
        result = (100 * result).to(random.choice(TYPES))
    elif way < 0.5:
        result = random.choice(
            (result.T, result[0], result[None], result[:0], result[:, :0], torch.tensor(1.0), result[:-1])
        )
    elif way < 0.55:
        result = torch.empty(rows, columns, device="meta")
    return result


def metrics(case: Case) -> None:
    """`rank_metrics` and `ranked_list`."""
    sides = labels(case.random, QUERIES), labels(case.random, GALLERY), case.random.choice(PROTOCOLS)
    matrix = distances(case, QUERIES, GALLERY)
    if case.random.random() < 0.3:
        no_nan(ranked_list(matrix, *sides, **settings(case, "top", "top")).distance)
        return
    result = rank_metrics(matrix, *sides, **settings(case, "ranks", "max_rank", "chunk_size"))
    rising = bool((result.cmc.diff() >= 0).all())
    if not (0 <= result.mAP <= 1 and 0 <= result.mINP <= 1 and rising):
        raise WrongResult(f"mAP {result.mAP}, mINP {result.mINP}, CMC rising: {rising}")


def verification(case: Case) -> None:
    """`equal_error` of two sets of distances."""
    same, different = (_draw(case.random, case.random.choice((0, 1, 7))).abs() for _ in range(2))
    for side in (same, different):
        if len(side) and case.random.random() < 0.4:
            side[0] = case.random.choice(VALUES)
    result = equal_error(same, different)
    if not 0 <= result.rate <= 1:
        raise WrongResult(f"an error rate of {result.rate}")


def alone(case: Case) -> None:
    """One item replaced by an outlier: the results of all others stay as they were."""
    query, gallery = _draw(case.random, QUERIES, WIDTH), _draw(case.random, GALLERY, WIDTH)
    value, row = case.random.choice((1e3, 1e6, 1e8, 1e10, 1e20, 1e30, 3e38)), case.random.randrange(QUERIES)
    in_query = case.random.random() < 0.5
    changed = (query if in_query else gallery).clone()
    changed[row, case.random.randrange(WIDTH)] = value
    now = (changed, gallery) if in_query else (query, changed)
    case.describe("outlier of", value, "in the query" if in_query else "in the gallery")
    function: Callable[[Tensor, Tensor], Tensor] = case.random.choice((
        pairwise_distance,
        lambda first, second: ranking_distance(first, second, normalise=False),
        _searched,
    ))  # fmt: skip
    before, after = function(query, gallery), function(*now)
    others = torch.arange(len(changed)) != row
    before, after = (before[others], after[others]) if in_query else (before[:, others], after[:, others])
    worst = float((before - after).abs().max())
    if worst > 1e-2:
        raise WrongResult(f"an outlier of {value:g} changes distances of others by {worst:g}")


def _searched(query: Tensor, gallery: Tensor) -> Tensor:
    """The distances of a search, in the order of the gallery."""
    found = trireid.search(query, gallery, top=len(gallery), normalise=False)
    return torch.empty_like(found.distance).scatter_(1, found.index, found.distance)


def model(case: Case) -> None:
    """A model called with odd images, presence and cameras, on odd devices."""
    random = case.random
    if random.random() < 0.15:
        device = random.choice(("cuda", "cuda:3", "mps", "meta", "tpu", "", "cpu:0", "cuda:-1", None, 5))
        case.describe(device)
        trireid.load_model(case.base / "run", device=device)
        return
    network = trireid.load_model(case.base / "run")
    images: Any = _draw(random, 2, 3, 3, 32, 16)
    present: Any = random.choice(
        (None, torch.ones(2, 3).bool(), torch.tensor([[True, False, True], [False, True, False]]))
    )
    camera: Any = random.choice((None, torch.tensor([0, -1])))
    way = random.random()
    if way < 0.35:
        shape = random.choice(((0, 3, 3, 32, 16), (2, 2, 3, 32, 16), (2, 3, 1, 32, 16), (2, 3, 3, 16, 32), (2, 3, 3,
        33, 16), (3, 32, 16), (),
                               (2, 3, 3, 0, 0)))  # fmt: skip
        images = _draw(random, *shape)
    elif way < 0.5:
        images = random.choice(
            (
                images.to(random.choice(TYPES)),
                images.numpy(),
                images.tolist(),
                None,
                torch.empty(2, 3, 3, 32, 16, device="meta"),
            )
        )
    elif way < 0.7:
        present = random.choice(
            (
                torch.zeros(2, 3).bool(),
                torch.ones(2, 2).bool(),
                torch.ones(3, 3).bool(),
                torch.ones(2, 3),
                [[True] * 3] * 2,
            )
        )
    elif way < 0.9:
        camera = random.choice(
            (
                torch.tensor([0, 99]),
                torch.tensor([-5, 0]),
                torch.tensor([0.5, 1.0]),
                torch.tensor([0]),
                0,
                torch.zeros(2, 1).long(),
            )
        )
    case.describe(getattr(images, "shape", images), getattr(images, "dtype", ""), present, camera)
    with torch.inference_mode():
        no_nan(network(images, present, camera).embedding)


KIND = Kind(
    "numbers",
    1400,
    prepare,
    {a_search: 22, re_ranking: 16, expansion: 10, distance: 12, metrics: 18, verification: 4, alone: 8, model: 10},
    quick=frozenset({a_search, re_ranking, expansion, distance, metrics, verification, alone}),
)
