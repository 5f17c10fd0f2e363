"""Random galleries, and what a query of one must find by brute force: the literal definition, with torch's distance."""

import numpy as np
import torch

from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.embedding.items import Item
from trireid.evaluation.calibration import Calibration, Curve, PairRates
from trireid.evaluation.presence import shared_pair_distance
from trireid.gallery.filters import Filter

BLOCKS = ((0,), (1,), (2,))
SUBSET_BLOCKS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
PRESENCES = [(code & 1 > 0, code & 2 > 0, code & 4 > 0) for code in range(1, 8)]


def model_of(blocks=BLOCKS, block_width=4, feature="global"):
    return ModelIdentity("f" * 64, feature, blocks, block_width * len(blocks), "a test", "0")


def embed(model, vectors, present, **fields):
    """Embeddings of random or given vectors, with zeros where no modality of a block is present."""
    present = np.asarray(present, dtype=bool).reshape(-1, 3)
    filled = np.array([[any(row[m] for m in block) for block in model.blocks] for row in present])
    vectors = np.asarray(vectors, dtype=np.float32).reshape(len(present), len(model.blocks), -1) * filled[..., None]
    count = len(present)
    columns = {name: values if isinstance(values, list) else [values] * count for name, values in fields.items()}
    columns.setdefault("key", [f"item{number:04d}" for number in range(count)])
    items = tuple(Item(images={}, **{name: columns[name][row] for name in columns}) for row in range(count))
    return Embeddings(vectors.reshape(count, -1), present, items, model)


def calibrated(model, *, cosine=0.8):
    """A calibration of items with all modalities: a false match rate of 0.01 from a cosine on."""
    curve = Curve(rate=np.array([1.0, 0.01]), low=np.array([1.0, 0.005]), high=np.array([1.0, 0.02]))
    rates = PairRates("rnt", "rnt", (99, 99), 99, 4851, 99, 9999, np.array([-1.0, cosine]), curve, curve)
    return Calibration(fingerprint=model.fingerprint, feature=model.feature, rates=(rates,))


def random_embeddings(random, model, count, *, keys=None):
    """Items of all presences, some of them copies of each other, with few identities, cameras and scenes."""
    centres = random.standard_normal((8, model.width))
    who = random.integers(0, 8, count)
    vectors = centres[who] + 0.7 * random.standard_normal((count, model.width))
    vectors *= random.uniform(0.2, 5.0, (count, 1))  # lengths must not count
    vectors = vectors.reshape(count, len(model.blocks), -1) * random.uniform(0.3, 3.0, (count, len(model.blocks), 1))
    present = np.array(PRESENCES)[random.integers(0, 7, count)]
    for row in range(0, count - 1, 9):  # ties: the same vector under two keys
        vectors[row + 1], present[row + 1] = vectors[row], present[row]
    return embed(
        model,
        vectors,
        present,
        key=[f"k{number:04d}" for number in random.permutation(count)] if keys is None else keys,
        identity=[None if draw == 0 else f"id{who[row]}" for row, draw in enumerate(random.integers(0, 4, count))],
        camera=[None if draw == 3 else f"c{draw}" for draw in random.integers(0, 4, count)],
        scene=[None if draw == 2 else f"s{draw}" for draw in random.integers(0, 3, count)],
        time=[None if draw == 0 else float(draw) for draw in random.integers(0, 50, count)],
    )


def random_filter(random):
    choices = [
        None,
        Filter(cameras=["c0", "c1"]),
        Filter(not_cameras=["c2"]),
        Filter(after=10.0, before=30.0),
        Filter(presence=["rgb,nir,tir", "rgb"]),
        Filter(identities=["id1", "id2", "id3"], scenes=["s0", "s1"]),
    ]
    return choices[random.integers(0, len(choices))]


def fulfils(item, present, where):
    """A filter, literally."""
    if where is None:
        return True
    names = ",".join(name for name, there in zip(("rgb", "nir", "tir"), present, strict=True) if there)
    return all(
        (
            where.cameras is None or item.camera in where.cameras,
            where.not_cameras is None or item.camera not in where.not_cameras,
            where.scenes is None or item.scene in where.scenes,
            where.identities is None or item.identity in where.identities,
            where.keys is None or item.key in where.keys,
            where.presence is None or names in where.presence,
            where.after is None or (item.time is not None and item.time >= where.after),
            where.before is None or (item.time is not None and item.time < where.before),
        )
    )


def hidden(query, item, exclude):
    """The rules of `trireid.Protocol`, literally."""
    same = query.identity is not None and query.identity == item.identity
    return {
        "none": False,
        "camera": same and query.camera is not None and query.camera == item.camera,
        "scene": same and query.scene is not None and query.scene == item.scene,
        "cross_camera": query.camera is not None and query.camera == item.camera,
    }[exclude]


class Reference:
    """A gallery as a dictionary: key -> (item, vector, present)."""

    def __init__(self, model, unrelated=0.0):
        self.model, self.unrelated, self.items = model, unrelated, {}

    def add(self, embeddings):
        for row, item in enumerate(embeddings.items):
            self.items[item.key] = (item, embeddings.vectors[row], embeddings.present[row])

    def distances(self, vector, present):
        """Key -> distance, and the keys that share no block with the query."""
        keys = list(self.items)
        vectors = torch.tensor(np.stack([self.items[key][1] for key in keys]))
        there = torch.tensor(np.stack([self.items[key][2] for key in keys]))
        query = torch.tensor(vector)[None].expand(len(keys), -1)
        mine = torch.tensor(present)[None].expand(len(keys), -1)
        found = shared_pair_distance(query, vectors, mine, there, self.model.blocks, unrelated=self.unrelated)
        filled = [[any(row[m] for m in block) for block in self.model.blocks] for row in (present, *there.tolist())]
        apart = {key for key, own in zip(keys, filled[1:], strict=True) if not np.any(np.array(filled[0]) & own)}
        return dict(zip(keys, found.tolist(), strict=True)), apart

    def nearest(self, query, vector, present, *, where=None, exclude="none", own=None):
        """(distance, key) of all items that a query may see, in order; those without a shared block last."""
        distances, apart = self.distances(vector, present)
        seen = [
            (key in apart, distances[key], key)
            for key, (item, _, there) in self.items.items()
            if key != own and fulfils(item, there, where) and not hidden(query, item, exclude)
        ]
        seen.sort(key=lambda each: (each[0], 0.0 if each[0] else round(each[1], 7), each[2]))
        return [(distance, key) for _, distance, key in seen], apart

    def identities(self, ranked, apart, reduce):
        """(distance, identity) in order, of a list of items."""
        groups = {}
        for distance, key in ranked:
            identity = self.items[key][0].identity
            if key not in apart and identity is not None:
                groups.setdefault(identity, []).append(distance)
        joined = {name: min(each) if reduce == "best" else float(np.mean(each)) for name, each in groups.items()}
        return sorted((round(distance, 7), name) for name, distance in joined.items())


def check_list(got, expected, *, tolerance=2e-6):
    """The same list; two that are nearer to each other than float32 can tell may stand either way."""
    assert len(got) == len(expected)
    assert len({name for _, name in got}) == len(got)
    order = {name: distance for distance, name in expected}
    for (distance, name), (right, right_name) in zip(got, expected, strict=True):
        assert abs(distance - right) <= tolerance
        if name != right_name:
            assert abs(order[name] - right) <= tolerance, (name, right_name, distance, right)
            assert order[name] != right, (name, right_name)
