"""The ratio of a cut by held-out identities."""

import pytest
import torch

from trireid.errors import InputError
from trireid.evaluation.cut_ratio import choose_ratio, foreseen_share


def test_the_search_stops_at_the_first_ratio_that_costs_too_much():
    scores = {0.5: [0.60, 0.62], 1.0: [0.60, 0.62], 0.8: [0.604, 0.608], 0.6: [0.5, 0.62]}
    assert choose_ratio(scores) == 0.8
    assert choose_ratio(scores, tolerance=0.0) == 1.0
    assert choose_ratio(scores, tolerance=0.1) == 0.5
    with pytest.raises(InputError, match="tolerance is 5"):
        choose_ratio(scores, tolerance=5)
    with pytest.raises(InputError, match="at least one score"):
        choose_ratio({1.0: []})


def test_the_foreseen_share_is_the_softmax_of_what_is_kept():
    scores = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, False], [True, True, False]])
    literal = [torch.e / (1 + torch.e), 2 / 3]
    assert torch.allclose(foreseen_share(scores, mask), torch.tensor(literal))
