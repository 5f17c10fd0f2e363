"""BNNeck: statistics over the items that have the feature, batches too small for them, nothing else changed."""

import pytest
import torch

from trireid.config.schema import BackboneConfig, ModelConfig
from trireid.losses import reid_loss
from trireid.models.bnneck import BNNeckClassifier
from trireid.models.build import build_model

WIDTH, CLASSES = 6, 4


def make(seed=0):
    torch.manual_seed(seed)
    neck = BNNeckClassifier(WIDTH, CLASSES)
    with torch.no_grad():
        neck.bottleneck.weight.uniform_(0.5, 1.5)
        neck.bottleneck.running_mean.normal_()
        neck.bottleneck.running_var.uniform_(0.5, 2.0)
    return neck


def features(batch=8):
    return torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(1)) * 3 + 5


def state(neck):
    return {name: value.clone() for name, value in neck.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_items_that_lack_the_feature_change_neither_logits_nor_statistics(training):
    present = torch.tensor([True, False, True, True, False, True, True, False])
    neck, alone = make().train(training), make().train(training)
    logits = neck(features() * present[:, None], present=present)
    assert torch.allclose(logits[present], alone(features()[present]), atol=1e-6)
    assert torch.equal(logits[~present], torch.zeros(3, CLASSES))
    after, expected = state(neck), state(alone)
    assert all(torch.allclose(after[name].double(), expected[name].double(), atol=1e-6) for name in expected)


def test_without_presence_it_is_batch_normalisation_and_a_linear_map_to_the_last_bit():
    neck, plain = make().train(), make().train()
    expected = plain.classifier(plain.bottleneck(features()))
    assert torch.equal(neck(features()), expected)
    assert all(torch.equal(value, state(plain)[name]) for name, value in state(neck).items())
    everyone = make().train()(features(), present=torch.ones(8, dtype=torch.bool))
    assert torch.allclose(everyone, expected, atol=1e-6)


@pytest.mark.parametrize("head", ["none", "hdm_atmoe", "sdtps"])
@pytest.mark.parametrize("classifier", ["joint", "separate"])
def test_one_item_alone_trains_with_the_running_statistics(head, classifier):
    backbone = BackboneConfig(name="tiny", pretrained="none", width=16, depth=1, num_heads=2)
    settings = ModelConfig(backbone=backbone, head=head, global_classifier=classifier)
    model = build_model(settings, image_size=(32, 32), num_classes=4, num_cameras=2).train()
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    loss = reid_loss(model(torch.randn(1, 3, 3, 32, 32)), torch.tensor([1]))["total"]
    loss.backward()
    assert torch.isfinite(loss)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if name in before)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_with_fewer_than_two_items_is_seen_with_the_running_statistics(count):
    present = torch.arange(8) < count
    neck = make().train()
    before, quiet = state(neck), make().eval()(features())
    logits = neck(features(), present=present)
    assert torch.allclose(logits[present], quiet[present], atol=1e-6)
    assert torch.equal(logits[~present], torch.zeros(8 - count, CLASSES))
    assert all(torch.equal(value, before[name]) for name, value in state(neck).items())
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in neck.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_runs_under_autocast(dtype):
    present = torch.arange(8) > 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = make().train()(features().to(dtype), present=present)
    assert torch.isfinite(logits).all()


def test_a_training_step_of_separate_classifiers_learns_nothing_from_what_is_absent():
    """Statistics, losses and gradients equal those of a batch that holds only the items with the modality."""
    backbone = BackboneConfig(name="tiny", pretrained="none", width=32, depth=1, num_heads=4)
    config = ModelConfig(backbone=backbone, head="none", global_classifier="separate")
    present = torch.ones(8, 3, dtype=torch.bool)
    present[[1, 3, 6], 2] = False
    images = torch.randn(8, 3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    label = torch.arange(8) // 2 % 4
    necks, losses = [], []
    for rows in (torch.arange(8), present[:, 2].nonzero()[:, 0]):
        torch.manual_seed(0)
        model = build_model(config, image_size=(16, 16), num_classes=CLASSES, num_cameras=0).train()
        terms = reid_loss(model(images[rows], present[rows]), label[rows])
        terms["total"].backward()
        necks.append(model.classifiers["tir"])
        losses.append(terms["tir/id"])
    assert torch.allclose(*losses, atol=1e-6)
    for mixed, alone in zip(necks[0].parameters(), necks[1].parameters(), strict=True):
        assert not mixed.requires_grad or torch.allclose(mixed.grad, alone.grad, atol=1e-6)
    for mixed, alone in zip(necks[0].buffers(), necks[1].buffers(), strict=True):
        assert torch.allclose(mixed.double(), alone.double(), atol=1e-6)
