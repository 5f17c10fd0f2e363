from __future__ import annotations

import numpy as np
import pytest
import torch

from trireid.errors import InputError
from trireid.evaluation.expansion import average_query_expansion


def literal_expansion(query, gallery, num_neighbours, alpha):
    """One query at a time; gallery None: the other queries."""
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    items = query if gallery is None else gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    result = []
    for row, own in enumerate(query):
        others = [column for column in range(len(items)) if gallery is not None or column != row]
        others.sort(key=lambda column: (-(own @ items[column]), column))
        total = own.copy()
        for column in others[:num_neighbours]:
            total += max(own @ items[column], 0.0) ** alpha * items[column]
        result.append(total / np.linalg.norm(total))
    return np.array(result)


def draw(count, seed, dim=5):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("num_neighbours", "own"), [(1, False), (4, False), (99, False), (3, True), (99, True)])
def test_equals_the_loop(alpha, num_neighbours, own):
    query, gallery = draw(8, 0), None if own else draw(21, 1)
    plain = None if gallery is None else gallery.double().numpy()
    expected = literal_expansion(query.double().numpy(), plain, num_neighbours, alpha)
    for chunk_size in (1, 3, 256):
        found = average_query_expansion(
            query, gallery, num_neighbours=num_neighbours, alpha=alpha, chunk_size=chunk_size
        )
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_closed_form():
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
    plain = average_query_expansion(query, gallery, num_neighbours=1, alpha=0.0)
    torch.testing.assert_close(plain, torch.tensor([[0.5, 0.5]]).sqrt())
    weighted = average_query_expansion(query, gallery, num_neighbours=2, alpha=1.0)
    assert torch.equal(weighted, query)  # at a right angle and beyond nothing counts


def test_ties_go_to_the_lower_position():
    query = torch.tensor([[1.0, 0.0, 0.0]])
    gallery = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    found = average_query_expansion(query, gallery, num_neighbours=1, alpha=0.0)
    assert found[0, 1] > 0.0
    assert found[0, 2] == 0.0


def test_a_single_item_stays_where_it_is():
    torch.testing.assert_close(average_query_expansion(torch.tensor([[3.0, 4.0]]), None), torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_neighbours": 0}, "num_neighbours=0"),
        ({"alpha": -1.0}, "alpha=-1"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_bad_settings_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        average_query_expansion(draw(2, 0), None, **settings)


def test_bad_features_are_errors():
    with pytest.raises(InputError, match=r"\(2, 5\) and \(2, 4\)"):
        average_query_expansion(draw(2, 0), draw(2, 0, dim=4))
    with pytest.raises(InputError, match="NaN or infinite"):
        average_query_expansion(torch.full((2, 3), torch.nan), None)
