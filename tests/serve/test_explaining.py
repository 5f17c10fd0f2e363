"""What the page draws of a model: its own features, the patches that it kept, and what speaks for a match."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_run import untrained_run, write_tree
from trireid.embedding.embedder import Embedder
from trireid.embedding.items import Item
from trireid.errors import InputError
from trireid.serve.explaining import Explainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explaining")
    tree = write_tree(folder / "images", identities=2)
    runs = {
        head: untrained_run(tree, folder / head, f"model.head={head}", "model.backbone.depth=2")
        for head in ("sdtps", "none")
    }
    return tree, {head: Embedder(run, device="cpu") for head, run in runs.items()}


def item(tree, key="000100_cam1_0_00", **folders):
    names = folders or {"rgb": "RGB", "nir": "NI", "tir": "TI"}
    return Item({name: tree / "test" / folder / f"{key}.jpg" for name, folder in names.items()}, key=key)


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=float)


def test_the_model_that_is_looked_into_gives_the_features_of_the_embedder(made):
    tree, embedders = made
    items = [item(tree), item(tree, "000101_cam1_0_00", tir="TI")]
    inputs = embedders["sdtps"].inputs(items)
    with torch.no_grad():
        output = inputs.model(inputs.images, present=inputs.present, camera=inputs.camera)
    assert np.allclose(output.embedding.numpy(), embedders["sdtps"].embed(items).vectors, atol=1e-5)
    with pytest.raises(InputError, match="item 'gone'"):
        embedders["sdtps"].inputs([Item({"rgb": tree / "none.jpg"}, key="gone")])


def test_dropped_patches_are_dim_and_kept_ones_as_they_are(made):
    tree, embedders = made
    maps = Explainer(embedders["sdtps"]).kept(item(tree, rgb="RGB", tir="TI"))
    assert list(maps.images) == list(maps.kept) == ["rgb", "tir"]
    inputs = embedders["sdtps"].inputs([item(tree, rgb="RGB", tir="TI")])
    with torch.no_grad():
        selection = inputs.model(inputs.images, present=inputs.present, camera=inputs.camera).selection["sdtps"]
    for number, name in ((0, "rgb"), (2, "tir")):
        mask = selection.mask[0, number].reshape(selection.grid).numpy()
        assert maps.counts[name] == (mask.sum(), mask.size)
        change = np.abs(pixels(maps.images[name]) - pixels(maps.kept[name])).mean(axis=2)
        rows, columns = mask.shape
        patches = change.reshape(rows, change.shape[0] // rows, columns, -1).mean(axis=(1, 3))
        assert patches[mask].max() < 5 < 15 < patches[~mask].min()


def test_a_model_that_keeps_all_patches_has_no_such_map(made):
    tree, embedders = made
    query, match = Explainer(embedders["none"]).pair(item(tree), item(tree, "000101_cam2_0_00", rgb="RGB"))
    assert (query.kept, query.counts) == ({}, {})
    assert (list(query.heat), list(match.heat)) == (["rgb", "nir", "tir"], ["rgb"])


def test_nothing_speaks_for_an_item_against_itself(made):
    tree, embedders = made
    query, match = Explainer(embedders["sdtps"]).pair(item(tree), item(tree))
    assert query.heat == match.heat == {}
    assert query.without_heat == ""
