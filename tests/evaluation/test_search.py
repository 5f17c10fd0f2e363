from __future__ import annotations

import numpy as np
import pytest
import torch

from trireid.errors import InputError
from trireid.evaluation.evaluate import ranking_distance
from trireid.evaluation.metrics import ranked_list
from trireid.evaluation.search import search
from trireid.types import Labels, Protocol

EXCLUDES = ("camera", "scene", "cross_camera", "none")


def make_set(seed, count, *, first_item=0, whole=False, dim=6):
    generator = torch.Generator().manual_seed(seed)

    def draw(high):
        return torch.randint(-1, high, (count,), generator=generator)

    # Whole numbers make ties, and distances that are the same however they are computed.
    features = torch.randint(-1, 2, (count, dim), generator=generator).float()
    features = features if whole else torch.randn(count, dim, generator=generator)
    return features, Labels(draw(5), draw(3), draw(2), torch.arange(first_item, first_item + count))


def assert_same(found, expected):
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.matches, expected.matches)
    torch.testing.assert_close(found.distance, expected.distance, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("exclude", EXCLUDES)
@pytest.mark.parametrize("whole", [True, False])
def test_a_memory_mapped_gallery_gives_the_list_of_the_full_matrix(tmp_path, exclude, whole):
    query, query_labels = make_set(1, 9, whole=whole)
    gallery, gallery_labels = make_set(2, 300, first_item=5, whole=whole)  # items 5..8 are shared
    np.save(tmp_path / "gallery.npy", gallery.numpy())
    stored = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    expected = ranked_list(
        ranking_distance(query, gallery, normalise=not whole), query_labels, gallery_labels, Protocol("p", exclude)
    )
    for chunk_size, query_chunk_size in ((1000, 256), (64, 4), (7, 1)):
        found = search(
            query, stored, query_labels, gallery_labels, Protocol("p", exclude),
            normalise=not whole, chunk_size=chunk_size, query_chunk_size=query_chunk_size,
        )  # fmt: skip
        assert_same(found, expected)


def test_without_labels_nothing_is_hidden_and_nothing_matches():
    query, gallery = make_set(1, 4)[0], make_set(2, 30)[0]
    found = search(query, torch.cat([gallery, query]), top=3)
    distance = ranking_distance(query, torch.cat([gallery, query]), normalise=True)
    assert torch.equal(found.index, distance.argsort(dim=1, stable=True)[:, :3])
    assert found.index[:, 0].tolist() == [30, 31, 32, 33]
    assert not found.matches.any()


def test_a_tensor_on_the_disk_is_read_in_parts(tmp_path):
    query, query_labels = make_set(1, 4)
    gallery, gallery_labels = make_set(2, 50, first_item=4)
    gallery.numpy().tofile(tmp_path / "gallery.bin")
    stored = torch.from_file(str(tmp_path / "gallery.bin"), size=300, dtype=torch.float32).view(50, 6)
    sizes = []

    class Watched:
        shape, ndim = stored.shape, 2

        def __len__(self):
            return len(stored)

        def __getitem__(self, rows):
            sizes.append(len(stored[rows]))
            return stored[rows]

    found = search(query, Watched(), query_labels, gallery_labels, Protocol("p"), chunk_size=16)
    assert sizes == [16, 16, 16, 2]  # each item once
    assert_same(found, search(query, gallery, query_labels, gallery_labels, Protocol("p")))


def test_half_precision_is_read_as_it_is():
    query, query_labels = make_set(1, 4)
    gallery, gallery_labels = make_set(2, 50, first_item=4)
    half = gallery.half()
    found = search(query, half.numpy(), query_labels, gallery_labels, Protocol("p"))
    assert_same(found, search(query, half.float(), query_labels, gallery_labels, Protocol("p")))


def test_short_lists_end_with_minus_one_and_infinity():
    features = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    labels = Labels(torch.tensor([1, 1, 2]), torch.tensor([0, 0, 0]), torch.full((3,), -1), torch.arange(3))
    found = search(features, features, labels, labels, Protocol("p", "camera"), top=9, normalise=False, chunk_size=1)
    assert found.index.tolist() == [[2, -1, -1], [2, -1, -1], [1, 0, -1]]
    assert found.distance.tolist()[0] == [2.0, float("inf"), float("inf")]
    assert not found.matches.any()


def test_what_does_not_fit_is_an_error():
    query, query_labels = make_set(1, 4)
    gallery, gallery_labels = make_set(2, 5)
    with pytest.raises(InputError, match=r"\(4, 6\) and \(5, 3\)"):
        search(query, gallery[:, :3], query_labels, gallery_labels, Protocol("p"))
    with pytest.raises(InputError, match="4 query and 4 gallery labels"):
        search(query, gallery, query_labels, query_labels, Protocol("p"))
    with pytest.raises(InputError, match="whole number, at least 1"):
        search(query, gallery, query_labels, gallery_labels, Protocol("p"), top=0)
    gallery[3, 1] = torch.nan
    with pytest.raises(InputError, match="gallery feature of item 3 is NaN"):
        search(query, gallery, query_labels, gallery_labels, Protocol("p"), chunk_size=2)


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "longdouble"])
def test_arrays_of_any_byte_order_are_read(dtype):
    query, gallery = (1000 * make_set(seed, count)[0].round(decimals=1) for seed, count in ((1, 4), (2, 30)))
    found = search(query, gallery.numpy().astype(dtype), top=3)
    assert_same(found, search(query, gallery, top=3))


@pytest.mark.parametrize("dtype", ["O", "U8", "complex64", None])
def test_galleries_of_no_numbers_are_refused(dtype):
    query = make_set(1, 4)[0]
    with pytest.raises(InputError, match="allowed (are real numbers|are a tensor)"):
        search(query, query.tolist() if dtype is None else query.numpy().astype(dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_finds_the_same():
    query, query_labels = make_set(1, 9, whole=True)
    gallery, gallery_labels = make_set(2, 300, first_item=5, whole=True)
    settings = {"normalise": False, "chunk_size": 64}
    expected = search(query, gallery, query_labels, gallery_labels, Protocol("p"), **settings)
    found = search(query.cuda(), gallery.numpy(), query_labels, gallery_labels, Protocol("p"), **settings)
    assert found.index.device.type == "cuda"
    assert torch.equal(found.index.cpu(), expected.index)
