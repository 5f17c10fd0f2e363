"""Adaptive fusion: the definition in Python numbers, what it is for, and what it leaves alone."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from trireid.config.schema import EvaluateConfig
from trireid.data.records import ImageSource, Record
from trireid.errors import InputError, RunError
from trireid.evaluation.distance import unit
from trireid.evaluation.evaluate import evaluate_features, feature_distance
from trireid.evaluation.feature_files import load_features, save_features
from trireid.evaluation.features import FeatureSet
from trireid.evaluation.fusion import counted_pairs, fused_distance, fusion_weights, spectra_of
from trireid.evaluation.ranking import Ranking, Rerank, Side
from trireid.evaluation.subsets import unfused, unfused_pairs
from trireid.types import MODALITY_BLOCKS, UNKNOWN, Labels, Protocol, modality_subsets

WIDTH = 8


def labels_of(count, *, cameras=2, places=6):
    item = torch.arange(count)
    return Labels(item % places, item // places % cameras, torch.full((count,), UNKNOWN), item)


def ranking_of(features, labels, *, blocks=MODALITY_BLOCKS, present=None, power=4.0):
    present = torch.ones(len(features), 3, dtype=torch.bool) if present is None else present
    own = FeatureSet(features={"global": features}, present=present, item=labels.item, blocks={"global": blocks})
    records = tuple(
        Record(f"{n}.png", (ImageSource(Path(f"{n}.png")),) * 3, identity="1") for n in range(len(features))
    )
    side = Side(own, labels, records)
    return Ranking(side, side, Protocol("camera", "camera"), adaptive_fusion=power)


def blinded(*, noise=0.3):
    """Two captures of 24 places; in the second, two of three spectra see the same haze whatever the place."""
    generator = torch.Generator().manual_seed(3)
    place = torch.randn(24, 3, WIDTH, generator=generator)
    both = torch.stack([place, place]) + noise * torch.randn(2, 24, 3, WIDTH, generator=generator)
    haze = torch.randn(2, WIDTH, generator=generator)
    both[1, :, :2] = haze + 0.2 * torch.randn(24, 2, WIDTH, generator=generator)
    item = torch.arange(48)
    return both.flatten(0, 1).flatten(1), Labels(item % 24, item // 24, torch.full((48,), UNKNOWN), item)


def literal(features, labels, power):
    """The definition, query by query, in Python numbers."""
    count = len(features)
    parts = unit(features.unflatten(1, (3, -1))).double()
    result = torch.empty(count, count)
    for q in range(count):
        others = [g for g in range(count) if g != q and labels.camera[g] != labels.camera[q]]
        cosines = [[float(parts[q, s] @ parts[g, s]) for g in range(count)] for s in range(3)]
        scores = []
        for row in cosines:
            counted = [row[g] for g in others]
            scores.append(((max(counted) - statistics.fmean(counted)) / statistics.pstdev(counted)) ** power)
        for g in range(count):
            fused = sum(score * row[g] for score, row in zip(scores, cosines, strict=True)) / sum(scores)
            result[q, g] = math.sqrt(max(0.0, 2.0 - 2.0 * fused))
    return result


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_distances_equal_the_definition(power):
    labels = labels_of(18, cameras=3)
    features = torch.randn(18, 3 * WIDTH, generator=torch.Generator().manual_seed(1))
    found = feature_distance(ranking_of(features, labels, power=power), "global")
    torch.testing.assert_close(found, literal(features, labels, power), atol=1e-4, rtol=1e-5)


def test_a_blinded_spectrum_loses_its_weight_and_the_match_is_found():
    features, labels = blinded()
    plain, fused = (
        evaluate_features(ranking_of(features, labels, power=power)).metrics["global"]["mAP"] for power in (0.0, 4.0)
    )
    assert fused > plain + 0.1
    cosine = torch.einsum("qsd,gsd->sqg", *[unit(features.unflatten(1, (3, -1)))] * 2)
    weight = fusion_weights(cosine, counted_pairs(labels, labels), 4.0)
    torch.testing.assert_close(weight.sum(dim=0), torch.ones(48, dtype=torch.float64))
    assert float(weight[2].mean()) > 1.5 * float(weight[:2].mean(dim=1).max())


def test_equal_spectra_are_weighed_alike_and_flat_ones_give_equal_weights():
    cosine = torch.rand(1, 4, 9, generator=torch.Generator().manual_seed(2)).expand(3, -1, -1)
    everything = torch.ones(4, 9, dtype=torch.bool)
    for each in (cosine, torch.full_like(cosine, 0.7)):
        torch.testing.assert_close(fusion_weights(each, everything, 4.0), torch.full((3, 4), 1 / 3).double())


def test_pairs_of_one_camera_do_not_count_unless_there_are_no_others():
    item = torch.arange(4)
    labels = Labels(item, torch.tensor([0, 0, 1, UNKNOWN]), torch.full((4,), UNKNOWN), item)
    rows = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert counted_pairs(labels, labels).int().tolist() == rows
    alone = replace(labels, camera=torch.zeros(4, dtype=torch.int64))
    assert torch.equal(counted_pairs(alone, alone), ~torch.eye(4, dtype=torch.bool))
    shared = replace(labels, scene=torch.tensor([0, UNKNOWN, 0, 0]))
    assert counted_pairs(shared, shared, scenes=True).int().tolist() == [
        [0, 1, 1, 1],
        [0, 0, 1, 1],
        [0, 1, 0, 0],
        [0, 1, 0, 0],
    ]


def test_mixed_blocks_and_items_that_lack_some_are_compared_as_before_and_that_is_reported():
    labels = labels_of(12)
    features = torch.randn(12, 7 * WIDTH, generator=torch.Generator().manual_seed(4))
    present = torch.ones(12, 3, dtype=torch.bool)
    mixed = ranking_of(features, labels, blocks=modality_subsets())
    present[3, 0] = False
    lacking = ranking_of(features[:, : 3 * WIDTH], labels, present=present)
    for ranking in (mixed, lacking):
        before = feature_distance(replace(ranking, adaptive_fusion=0.0), "global")
        assert torch.equal(feature_distance(ranking, "global"), before)
        message = next(line for line in evaluate_features(ranking).messages if line.startswith("adaptive fusion"))
        assert "; compared as without it, since spectra are mixed or items lack some: global" in message


def test_spectra_that_all_items_lack_have_no_part():
    labels = labels_of(12)
    features = torch.randn(12, 3 * WIDTH, generator=torch.Generator().manual_seed(5))
    present = torch.ones(12, 3, dtype=torch.bool)
    present[:, 1] = False
    found = feature_distance(ranking_of(features, labels, present=present), "global")
    two = {0: [0], 2: [2]}
    assert spectra_of(MODALITY_BLOCKS, present[0]) == two
    expected = fused_distance(features, features, two, counted_pairs(labels, labels), num_blocks=3, power=4.0)
    assert torch.equal(found, expected)


def test_saved_features_are_ranked_with_it_again(tmp_path):
    features, labels = blinded()
    ranking = ranking_of(features, labels)
    save_features(tmp_path, ranking)
    again = load_features(tmp_path)
    assert again.adaptive_fusion == 4.0
    assert torch.equal(feature_distance(again, "global"), feature_distance(ranking, "global"))
    records = tmp_path / "records.json"
    content = json.loads(records.read_text()) | {"normalise": False}
    records.write_text(json.dumps(content))
    with pytest.raises(RunError, match="is damaged .*normalise=False ranks by other distances"):
        load_features(tmp_path)
    del content["adaptive_fusion"]  # as an earlier version wrote it
    records.write_text(json.dumps(content))
    assert load_features(tmp_path).adaptive_fusion == 0.0


@pytest.mark.parametrize("other", [{"rerank": True}, {"normalise": False}])
def test_it_excludes_other_distances(other):
    with pytest.raises(ValidationError, match="adaptive_fusion=4 weighs the cosines.*use one of them"):
        EvaluateConfig(adaptive_fusion=4.0, **other)


def test_a_ranking_refuses_other_distances_wrong_powers_and_broken_features():
    ranking = ranking_of(torch.randn(12, 3 * WIDTH, generator=torch.Generator().manual_seed(6)), labels_of(12))
    wrong = [{"rerank": Rerank()}, {"normalise": False}, *({"adaptive_fusion": power} for power in (-1, math.nan, 65))]
    for other in wrong:
        with pytest.raises(InputError, match="use one of them|allowed are 0"):
            replace(ranking, **other)
    ranking.gallery.features.features["global"][7, 3] = math.nan
    with pytest.raises(InputError, match="feature of item 7 is NaN"):
        feature_distance(ranking, "global")


def test_messages_name_the_pairs_that_count():
    features = torch.randn(12, 3 * WIDTH, generator=torch.Generator().manual_seed(7))
    labels, scene = labels_of(12), Protocol("scene", "scene")

    def message(ranking):
        return next(line for line in evaluate_features(ranking).messages if line.startswith("adaptive fusion"))

    plain = ranking_of(features, labels)
    assert message(plain).endswith("(evaluate.adaptive_fusion)")
    assert "best match of another camera and scene stands out" in message(replace(plain, protocol=scene))
    unknown = replace(labels, camera=labels.camera.masked_fill(labels.item == 3, UNKNOWN))
    assert message(ranking_of(features, unknown)).endswith("; an unknown camera counts as another one")
    alone = ranking_of(features, replace(labels, camera=torch.zeros_like(labels.camera)))
    alone = replace(alone, protocol=Protocol("none", "none"))
    assert message(alone).endswith("; 12 queries have a gallery of their own camera alone, which then counts")
    present = torch.tensor([[False, False, True]]).expand(12, -1)
    features[:, : 2 * WIDTH] = 0.0
    single = ranking_of(features, labels, present=present)
    assert message(single).endswith("; the items share a single spectrum, which has all the weight")
    before = feature_distance(replace(single, adaptive_fusion=0.0), "global")
    torch.testing.assert_close(feature_distance(single, "global"), before, atol=1e-3, rtol=0.0)


def test_cases_without_it_beside_cases_with_it_are_named():
    features, labels = torch.randn(12, 3 * WIDTH, generator=torch.Generator().manual_seed(8)), labels_of(12)
    present = torch.ones(12, 3, dtype=torch.bool)
    complete = ranking_of(features, labels, present=present)
    present = present.clone()
    present[3, 0] = False
    cases = {"none": ranking_of(features, labels, present=present), "r": complete}
    why = "without adaptive fusion, since some items lack a spectrum: global in"
    assert unfused(cases) == [f"{why} none"]
    assert unfused_pairs(cases) == [f"{why} none to none, none to r, r to none"]
    many = {str(number): cases["none"] for number in range(8)} | {"r": complete}
    assert unfused(many) == [f"{why} 8 of 9 rankings"]
    only = torch.tensor([[True, False, False]]).expand(12, -1)
    single = ranking_of(features * only.repeat_interleave(WIDTH, dim=1), labels, present=only)
    assert unfused({"none": complete, "nt": single}) == [
        "adaptive fusion has no effect, since one spectrum is left, which has all the weight: global in nt"
    ]
    assert unfused({"nt": single}) == unfused({"r": complete}) == unfused({"none": cases["none"]}) == []
