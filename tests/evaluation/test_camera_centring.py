"""Means of blocks, and centring by camera, against sums written out item by item."""

from dataclasses import replace

import torch

from trireid.evaluation.centring import block_means, centred_by_camera
from trireid.evaluation.features import FeatureSet
from trireid.evaluation.ranking import Ranking, Side
from trireid.models.centre import subtract_means
from trireid.types import MODALITY_BLOCKS, Labels, Protocol, filled_blocks, modality_subsets

WIDTH = 4


def make_side(count, cameras, *, seed):
    """Features of items that lack some modalities, 0 in the blocks that are not filled."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(count, 3, generator=generator) < 0.6
    present[~present.any(dim=1), 1] = True
    blocks = {"global": MODALITY_BLOCKS, "head": modality_subsets()}
    features = {}
    for name, each in blocks.items():
        values = torch.randn(count, len(each), WIDTH, generator=generator) + 2.0
        features[name] = (values * filled_blocks(each, present)[..., None]).flatten(1)
    features |= dict(zip(("rgb", "nir", "tir"), features["global"].unflatten(1, (3, -1)).unbind(1), strict=True))
    features["joint"] = torch.cat([features["global"], features["head"]], dim=1)
    camera = torch.tensor(cameras)[torch.arange(count) % len(cameras)]
    number = torch.arange(count)
    labels = Labels(identity=number % 3, camera=camera, scene=torch.full((count,), -1), item=number + 100 * seed)
    blocks["joint"] = MODALITY_BLOCKS + modality_subsets()
    return Side(FeatureSet(features, present, number, blocks), labels)


def literal(side, source, name, blocks, row):
    """One item's feature less the mean of each of its blocks over the items of its camera that have it."""
    feature = side.features.features[name][row].unflatten(0, (len(blocks), -1)).clone()
    for number, block in enumerate(blocks):
        if not any(bool(side.features.present[row, m]) for m in block):
            continue
        rows = [
            other
            for other in range(len(source))
            if source.labels.camera[other] == side.labels.camera[row]
            and any(bool(source.features.present[other, m]) for m in block)
        ]
        parts = [source.features.features[name][other].unflatten(0, (len(blocks), -1))[number] for other in rows]
        feature[number] -= torch.stack(parts).mean(dim=0)
    return feature.flatten()


def test_every_block_is_centred_by_its_mean_over_the_gallery_items_of_the_camera_that_have_it():
    query, gallery = make_side(9, (0, 7), seed=1), make_side(14, (0, 3), seed=2)  # no gallery item of camera 7
    centred = centred_by_camera(Ranking(query, gallery, Protocol("test")))
    for name, blocks in gallery.features.blocks.items():
        for row in range(len(gallery)):
            expected = literal(gallery, gallery, name, blocks, row)
            assert torch.allclose(centred.gallery.features.features[name][row], expected, atol=1e-5)
        for row in range(len(query)):
            source = gallery if query.labels.camera[row] == 0 else query
            expected = literal(query, source, name, blocks, row)
            assert torch.allclose(centred.query.features.features[name][row], expected, atol=1e-5)
    rgb = centred.query.features.features["global"][:, :WIDTH]
    assert torch.equal(centred.query.features.features["rgb"], rgb)


def test_one_set_as_query_and_gallery_stays_one_set():
    side = make_side(8, (0, 1), seed=3)
    centred = centred_by_camera(Ranking(side, side, Protocol("test")))
    assert centred.query_is_gallery
    means, count = block_means(
        centred.query.features.features["global"],
        filled_blocks(MODALITY_BLOCKS, side.features.present),
        side.labels.camera,
        2,
    )
    assert torch.allclose(means, torch.zeros_like(means), atol=1e-6)
    assert int(count.sum()) == int(side.features.present.sum())
    shifted = replace(side.features, features={k: v + 0.0 for k, v in side.features.features.items()})
    assert torch.equal(subtract_means(shifted.features["rgb"], side.features.present[:, :1], torch.zeros(WIDTH)),
                       side.features.features["rgb"])  # fmt: skip
