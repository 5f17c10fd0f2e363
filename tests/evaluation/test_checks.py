"""What the public functions refuse before they compute."""

import pytest
import torch

from trireid.errors import InputError
from trireid.evaluation.checks import check_labels, check_sizes, check_tensors
from trireid.evaluation.expansion import average_query_expansion
from trireid.evaluation.metrics import pairwise_distance, rank_metrics
from trireid.evaluation.rerank import k_reciprocal, k_reciprocal_distance
from trireid.evaluation.search import search
from trireid.evaluation.verification import equal_error
from trireid.types import Labels, Protocol

GOOD = torch.eye(4)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (GOOD.tolist(), "got list; allowed are tensors"),
        (GOOD.to_sparse(), "sparse or quantised"),
        (GOOD.to("meta"), "on the device meta"),
        (GOOD.to(torch.complex64), "of type torch.complex64"),
    ],
)
def test_only_dense_real_tensors_are_compared(value, words):
    with pytest.raises(InputError, match=words):
        check_tensors("it", GOOD, value)
    for function in (pairwise_distance, k_reciprocal, average_query_expansion):
        with pytest.raises(InputError):
            function(value, GOOD)
        with pytest.raises(InputError):
            function(GOOD, value)
    with pytest.raises(InputError):
        search(value, GOOD)


@pytest.mark.parametrize("size", [0, -1, 2.5, None, "3", True])
def test_sizes_are_whole_numbers_of_at_least_1(size):
    with pytest.raises(InputError, match="it must be a whole number, at least 1"):
        check_sizes("it", good=1, top=size)
    labels = Labels(*[torch.arange(4)] * 4)
    for function, setting in (
        (pairwise_distance, "chunk_size"), (k_reciprocal, "k1"), (k_reciprocal, "chunk_size"), (search, "top"),
        (average_query_expansion, "num_neighbours"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{setting}="):
            function(GOOD, GOOD, **{setting: size})
    for setting in ("max_rank", "chunk_size"):
        with pytest.raises(InputError, match=f"{setting}="):
            rank_metrics(GOOD, labels, labels, Protocol("all", exclude="none"), **{setting: size})


def test_what_has_no_meaning_is_refused():
    with pytest.raises(InputError, match="alpha=nan"):
        average_query_expansion(GOOD, GOOD, alpha=float("nan"))
    with pytest.raises(InputError, match="different pairs is NaN or infinite"):
        equal_error(torch.ones(2), torch.tensor([1.0, torch.inf]))
    with pytest.raises(InputError, match=r"must have the shape \(Q,\)"):
        check_labels("it", Labels(torch.arange(4), torch.arange(3), torch.arange(4), torch.arange(4)))


def test_distances_to_re_rank_are_finite_and_not_negative():
    for value in (-1.0, torch.nan, torch.inf):
        broken = torch.cdist(GOOD, GOOD)
        broken[1, 2] = value
        with pytest.raises(InputError, match="negative, NaN or infinite"):
            k_reciprocal_distance(broken, torch.zeros(4, 4), torch.zeros(4, 4), lambda_value=0.0)
    with pytest.raises(InputError, match="float16 or wider"):
        k_reciprocal_distance(*[GOOD.to(torch.float8_e4m3fn)] * 3)


def test_sides_of_two_types_are_re_ranked_as_their_numbers_are():
    assert torch.equal(k_reciprocal(GOOD.double(), GOOD.half()), k_reciprocal(GOOD, GOOD))
