"""The check of an exported file: what passes, what is a near tie, and what is refused."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from trireid.export.graph import ExportedModel
from trireid.export.parity import MIXED, Parity, ParityError, cases, check_parity, compare


@pytest.fixture(scope="module")
def checked():
    """The cases of a model with a cut, and a runner that gives what the model gives."""
    model = tiny_model("SDTPS after cuts")
    graph = ExportedModel(model, selections=True)
    images = torch.randn(8, 3, 3, 32, 16, generator=torch.Generator().manual_seed(3))
    found = list(cases(model, images, modalities=None, fewest=1, num_cameras=2))

    def run(inputs):
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        given["images"] = given["images"].nan_to_num(0.0)  # what an export does, and this function does not
        with torch.no_grad():
            return {name: value.numpy().copy() for name, value in graph(**given).items()}

    return found, run


def test_a_file_that_gives_what_the_model_gives_passes(checked):
    found, run = checked
    names = ["images", "present", "camera"]
    parity = check_parity(
        found, {"onnxruntime": run}, names=names, modalities=None, tolerance=1e-5, images="random images"
    )
    assert parity.faults == []
    assert len(parity.rows) == 8 * 3
    assert {row.presence for row in parity.rows} >= {"rgb", "rgb+tir", "rgb+nir+tir", MIXED}
    assert parity.to_dict()["passed"] is True


def changed(checked, change, presence="rgb", tolerance=1e-5):
    """The row of a file whose outputs for three items are changed by a function."""
    found, run = checked
    case = next(each for each in found if each.presence == presence)
    outputs = run(case.inputs(3, modalities=None, names=["images", "present", "camera"]))
    change(outputs, case)
    return compare("onnxruntime", case, outputs, batch=3, tolerance=tolerance)


def test_a_feature_that_differs_or_is_no_number_is_a_fault(checked):
    def scale(outputs, case):
        outputs["head"][1] *= 1.001

    row = changed(checked, scale)
    assert row.errors["head"] == pytest.approx(0.001, rel=1e-3)
    assert "head differs by 1.0e-03 (ONNX Runtime, rgb, batch 3)" in row.faults(1e-5)

    def spoil(outputs, case):
        outputs["global"][0, 0] = np.nan

    assert changed(checked, spoil).faults(1e-5) == ["global differs by nan (ONNX Runtime, rgb, batch 3)"]


def test_a_value_in_the_block_of_an_absent_modality_is_a_fault_however_small(checked):
    def leak(outputs, case):
        outputs["global"][2, -1] = 1e-12

    assert changed(checked, leak).faults(1e-5) == [
        "1 blocks of absent modalities are not 0 (ONNX Runtime, rgb, batch 3)"
    ]


def test_other_patches_are_a_fault_unless_their_scores_are_all_but_equal(checked):
    def swap(outputs, case):
        scores = case.expected.selection["block1"].scores[0, 0].numpy()
        kept = outputs["patches/block1"][0, 0]
        dropped = np.setdiff1d(np.arange(len(scores)), kept)
        worst, best = kept[scores[kept].argmin()], dropped[scores[dropped].argmax()]
        outputs["patches/block1"][0, 0] = np.sort(np.where(kept == worst, best, kept))
        outputs["joint"][0] += 1.0  # follows from other patches

    row = changed(checked, swap)
    assert (row.near_ties, row.other_patches) == (0, 1)
    assert "1 items keep other patches (ONNX Runtime, rgb, batch 3)" in row.faults(1e-5)
    loose = changed(checked, swap, tolerance=1.0)
    assert (loose.near_ties, loose.other_patches) == (1, 0)
    assert loose.faults(1e-5) == []


def test_the_error_names_the_first_fault_and_their_number(checked):
    def spoil(outputs, case):
        outputs["global"][:] += 1.0

    row = changed(checked, spoil)
    with pytest.raises(ParityError, match=r"the exported file is not kept: global differs by .* and \d+ more faults"):
        raise ParityError(Parity((row,), 1e-5, "random images"))
