import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend

from trireid.errors import InputError
from trireid.visualize.embedding import embed_in_plane, embedding_figure


def clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3).repeat_interleave(6, dim=0)
    return 5 * centres + 0.05 * torch.randn(18, 3, generator=generator)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_items_of_one_group_stay_together(method):
    points = embed_in_plane(clusters(), method=method)
    assert points.shape == (18, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    group = np.arange(18) // 6
    same = group[:, None] == group[None]
    assert distance[same].max() < distance[~same].min()


def test_the_same_seed_gives_the_same_plane_and_scale_does_not_matter():
    points = embed_in_plane(clusters(), method="pca")
    assert np.allclose(points, embed_in_plane(100 * clusters(), method="pca"))


def test_too_few_items_and_unknown_methods_are_said():
    with pytest.raises(InputError, match="at least 4"):
        embed_in_plane(torch.eye(3))
    with pytest.raises(InputError, match="tsne and pca"):
        embed_in_plane(torch.eye(5), method="umap")


def test_colour_is_identity_and_marker_is_camera():
    points = np.arange(12.0).reshape(6, 2)
    figure = embedding_figure(points, ["a", "a", "b", "b", "b", "a"], ["1", "2", "1", "2", None, "1"])
    (axis,) = figure.axes
    groups = axis.collections
    assert len(groups) == 5  # (camera, identity) pairs that occur
    assert sorted(tuple(point) for group in groups for point in group.get_offsets()) == [tuple(p) for p in points]
    assert len({tuple(group.get_facecolor()[0]) for group in groups}) == 2
    assert len({group.get_paths()[0].vertices.tobytes() for group in groups}) == 3
    legends = [child for child in axis.get_children() if type(child).__name__ == "Legend"]
    assert {text.get_text() for legend in legends for text in legend.get_texts()} == {"1", "2", "not known", "a", "b"}


def test_both_legends_lie_within_the_picture():
    points = np.arange(8.0).reshape(4, 2)
    figure = embedding_figure(points, ["a", "a", "b", "b"], ["a camera with a long name", None, None, None])
    FigureCanvasAgg(figure).draw()
    (axis,) = figure.axes
    legends = [child for child in axis.get_children() if isinstance(child, Legend)]
    assert len(legends) == 2
    for legend in legends:
        assert legend.get_window_extent().x1 <= figure.bbox.x1
