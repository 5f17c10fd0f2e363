from __future__ import annotations

import pytest
import torch
from torch import nn

from trireid.errors import InputError
from trireid.evaluation.evaluate import evaluate_features, evaluate_model, ranking_distance
from trireid.evaluation.features import evaluation_mode, extract_features
from trireid.evaluation.metrics import rank_metrics
from trireid.evaluation.missing import subset_cases, withhold, withhold_batch
from trireid.evaluation.ranking import Ranking, Rerank, Side
from trireid.types import MODALITIES, Batch, Labels, Protocol, ReIDOutput


class MeanModel(nn.Module):
    """Per modality: the mean of each colour. Counts its calls; notes what it was given."""

    def __init__(self, head=True):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Identity().eval()
        self.head = head
        self.calls = []

    def forward(self, images, present=None, camera=None):
        told = present is not None
        present = present if told else images.new_ones(images.shape[:2]).bool()
        call = {"training": self.training, "grad": torch.is_grad_enabled(), "present": present.clone()}
        self.calls.append({**call, "told": told})
        means = images.mean(dim=(-1, -2))  # (B, M, 3)
        features = dict(zip(MODALITIES, means.unbind(dim=1), strict=True))
        features["global"] = means.flatten(1)
        if self.head:
            features["head"] = means.square().flatten(1)
        return ReIDOutput(features=features, present=present)


def make_batches(count, size, seed=0, order=None):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 3, 4, 4, generator=generator)
    items = torch.arange(count) if order is None else torch.tensor(order)
    return [
        Batch(
            images=images[part],
            present=torch.ones(len(part), 3, dtype=torch.bool),
            label=torch.full((len(part),), -1),
            camera=torch.zeros(len(part), dtype=torch.int64),
            item=part,
            seed=part,
        )
        for part in items.split(size)
    ]


def make_labels(count, first_item=0):
    position = torch.arange(count)
    return Labels(position % 4, position // 4 % 2, position % 3, position + first_item)


def test_one_forward_a_batch_gives_every_feature_on_the_cpu():
    model, batches, seen = MeanModel(), make_batches(10, 4), []
    found = extract_features(model, batches, device="cpu", progress=seen.append)
    assert len(model.calls) == 3
    assert not any(call["told"] for call in model.calls)  # nothing is missing: the model gets no presence
    assert seen == [4, 4, 2]
    assert set(found.features) == {"global", "head", "joint", "rgb", "nir", "tir"}
    assert found.item.tolist() == list(range(10))
    images = torch.cat([batch.images for batch in batches])
    expected = images.mean(dim=(-1, -2)).flatten(1)
    torch.testing.assert_close(found.features["global"], expected)
    torch.testing.assert_close(found.features["joint"], torch.cat([expected, found.features["head"]], dim=1))
    assert all(value.dtype == torch.float32 and not value.is_inference() for value in found.features.values())


def test_features_come_in_the_order_of_the_items():
    ordered = extract_features(MeanModel(), make_batches(7, 3), device="cpu")
    shuffled = extract_features(MeanModel(), make_batches(7, 3, order=[5, 0, 6, 2, 1, 4, 3]), device="cpu")
    assert torch.equal(ordered.features["joint"], shuffled.features["joint"])
    assert torch.equal(ordered.item, shuffled.item)


def test_modes_are_restored_one_by_one_also_after_an_error():
    model = MeanModel().train()
    model.frozen.eval()
    extract_features(model, make_batches(2, 2), device="cpu")
    assert model.calls[0]["training"] is False
    assert model.calls[0]["grad"] is False
    assert model.training
    assert model.norm.training
    assert not model.frozen.training
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert model.training


def test_autocast_type_is_used():
    class Linear(MeanModel):
        def forward(self, images, present=None, camera=None):
            self.seen = torch.nn.functional.linear(images.mean(dim=(-1, -2)).flatten(1), torch.ones(2, 9))
            return ReIDOutput(features={"global": self.seen}, present=torch.ones(len(images), 3, dtype=torch.bool))

    model = Linear()
    found = extract_features(model, make_batches(2, 2), device="cpu", dtype=torch.bfloat16)
    assert model.seen.dtype == torch.bfloat16
    assert found.features["global"].dtype == torch.float32


def test_a_feature_that_is_not_a_number_names_its_item():
    batches = make_batches(5, 2)
    batches[1].images[1, 2] = torch.nan
    names = ["a", "b", "c", "broken one", "e"]
    with pytest.raises(InputError, match=r"item 3 \(broken one\)"):
        extract_features(MeanModel(), batches, device="cpu", names=names)


def test_empty_loader_and_repeated_item_are_errors():
    with pytest.raises(InputError, match="no batch"):
        extract_features(MeanModel(), [], device="cpu")
    with pytest.raises(InputError, match="item 0 more than once"):
        extract_features(MeanModel(), make_batches(2, 2) * 2, device="cpu")


def test_query_is_gallery_calls_the_model_once_a_batch():
    model, labels = MeanModel(), make_labels(12)
    result = evaluate_model(
        model, make_batches(12, 5), None, query_labels=labels, gallery_labels=None, protocol=Protocol("p"), device="cpu"
    )
    assert len(model.calls) == 3
    assert result.gallery is result.query
    assert set(result.metrics) == {"global", "head", "joint"}
    distance = ranking_distance(result.query.features["head"], None)
    assert result.metrics["head"] == rank_metrics(distance, labels, labels, Protocol("p")).as_dict()


def test_query_and_gallery_apart_and_no_head():
    model = MeanModel(head=False)
    result = evaluate_model(
        model,
        make_batches(4, 2),
        make_batches(8, 4, seed=1),
        query_labels=make_labels(4),
        gallery_labels=make_labels(8, first_item=4),
        protocol=Protocol("p", "none"),
        device="cpu",
        normalise=False,
    )
    assert len(model.calls) == 4
    assert set(result.metrics) == {"global", "joint"}
    assert result.metrics["global"] == result.metrics["joint"]
    assert (result.num_queries, result.num_gallery, result.num_unmatched) == (4, 8, 0)
    expected = torch.cdist(result.query.features["global"], result.gallery.features["global"])
    literal = rank_metrics(expected, make_labels(4), make_labels(8, 4), Protocol("p", "none"))
    assert result.metrics["global"] == pytest.approx(literal.as_dict())


def test_rerank_is_applied_and_reported():
    query = extract_features(MeanModel(), make_batches(16, 8), device="cpu")
    side = Side.of_split(query, make_labels(16), name="query")
    plain = evaluate_features(Ranking(side, side, Protocol("p")))
    again = evaluate_features(Ranking(side, side, Protocol("p"), rerank=Rerank(k1=5, k2=2)))
    assert plain.metrics != again.metrics
    assert again.messages == ("re-ranked (k-reciprocal, k1 5, k2 2, lambda 0.3)",)


def test_unmatched_queries_and_unknown_cameras_are_reported():
    labels = Labels(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 1, 0, -1]), torch.full((4,), -1), torch.arange(4))
    query = extract_features(MeanModel(), make_batches(4, 4), device="cpu")
    side = Side.of_split(query, labels, name="query")
    result = evaluate_features(Ranking(side, side, Protocol("p")))
    assert result.num_unmatched == 2
    assert result.messages[0].startswith("2 of 4 queries have no valid match")
    assert "camera of 1 of 4 queries is not known" in result.messages[1]


def test_loader_and_labels_must_fit():
    with pytest.raises(InputError, match="both a gallery loader"):
        evaluate_model(
            MeanModel(), [], None, query_labels=make_labels(1), gallery_labels=make_labels(1), protocol=Protocol("p"),
            device="cpu",
        )  # fmt: skip
    query = extract_features(MeanModel(), make_batches(4, 4), device="cpu")
    with pytest.raises(InputError, match="gave 4 items for 5 labels"):
        Side.of_split(query, make_labels(5), name="query")


def test_the_complete_case_and_the_six_published_ones():
    assert list(subset_cases()) == ["rnt", "nt", "rt", "rn", "t", "n", "r"]
    assert subset_cases()["rnt"] == ()
    assert subset_cases()["n"] == ("rgb", "tir")


@pytest.mark.parametrize("case", list(subset_cases())[1:])
def test_withheld_modalities_are_zero_and_absent(case):
    batch = make_batches(3, 3)[0]
    withheld = withhold_batch(batch, subset_cases()[case])
    for index, name in enumerate(MODALITIES):
        gone = name in subset_cases()[case]
        assert bool((withheld.images[:, index] == 0).all()) is gone
        assert bool(withheld.present[:, index].any()) is not gone
        if not gone:
            assert torch.equal(withheld.images[:, index], batch.images[:, index])
    assert batch.present.all()  # the batch given is not changed


def test_the_model_is_told_what_is_missing():
    model = MeanModel()
    result = evaluate_model(
        model, make_batches(8, 8), None, query_labels=make_labels(8), gallery_labels=None, protocol=Protocol("p"),
        device="cpu", missing=("nir",),
    )  # fmt: skip
    assert model.calls[0]["told"]
    assert model.calls[0]["present"][0].tolist() == [True, False, True]
    assert torch.equal(result.query.present, model.calls[0]["present"])
    assert not result.query.features["nir"].any()
    assert "withheld from query and gallery: nir" in result.messages


def test_withholding_nothing_unknown_or_everything():
    batch = make_batches(2, 2)[0]
    assert withhold(batch.present, batch.images, ()) == (batch.present, batch.images)
    elsewhere = batch.images.to("meta")  # as of a set whose pixels lie on the device
    assert withhold(batch.present, elsewhere, ("nir",))[1].device.type == "meta"
    with pytest.raises(InputError, match="cannot withhold uv"):
        withhold_batch(batch, ("uv",))
    with pytest.raises(InputError, match="leaves 2 item"):
        withhold_batch(batch, MODALITIES)


def mean_transform(pixels, present):
    """As `Normalise`: what is absent is 0 after normalisation, not black pixels."""
    return (pixels - 10.0) * present[:, :, None, None, None]


def test_withheld_as_zeros_shows_images_of_zeros_without_presence():
    model, batches = MeanModel(), make_batches(8, 4)
    batches[1].present[0, 1] = False  # lacking in the data set: stays absent
    arguments = {"device": "cpu", "transform": mean_transform, "withheld": ("tir",)}
    found = extract_features(model, batches, missing_as="zeros", **arguments)
    assert [call["told"] for call in model.calls] == [False, True]
    assert found.present.tolist() == [[True] * 3] * 4 + [[True, False, True]] + [[True] * 3] * 3
    assert torch.equal(found.features["tir"], torch.zeros(8, 3))
    assert (found.features["rgb"] < -7).all()


def test_missing_as_absent_tells_the_model():
    model = MeanModel()
    found = extract_features(model, make_batches(4, 4), device="cpu", transform=mean_transform, withheld=("tir",))
    assert model.calls[0]["told"]
    assert found.present.tolist() == [[True, True, False]] * 4
