"""Recorded inference gives what the model gives, for every shape, and needs a CUDA device."""

import pytest
import torch

from tiny_run import tiny_config
from trireid.errors import InputError
from trireid.models.build import build_model
from trireid.models.recorded import RecordedModel

CUTS = "model.slimming=[{after_block: 1, keep_ratio: 0.5}]"


def tiny_model(tmp_path, *settings):
    config = tiny_config(tmp_path, tmp_path / "run", "model.backbone.depth=2", *settings)
    return build_model(config.model, image_size=(32, 16), num_classes=4, num_cameras=2, load_pretrained=False).eval()


def test_a_model_on_the_cpu_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"the model is on cpu; a recording needs a CUDA device"):
        RecordedModel(tiny_model(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("settings", [("model.head=none", CUTS), ("model.head=sdtps",), ("model.head=hdm_atmoe", CUTS)])
def test_a_replay_gives_what_the_model_gives(tmp_path, settings):
    model = tiny_model(tmp_path, *settings).cuda()
    recorded = RecordedModel(model)
    for size in (4, 4, 3, 4):
        images = torch.randn(size, 3, 3, 32, 16, device="cuda")
        with torch.inference_mode():
            expected = model(images)
        output = recorded(images)
        assert torch.allclose(output.embedding, expected.embedding, atol=1e-5)
        for name, selection in expected.selection.items():
            assert torch.equal(output.selection[name].indices, selection.indices)
