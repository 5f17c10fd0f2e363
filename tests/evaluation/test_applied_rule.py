"""What a protocol hid, against the whole masks, and the messages where it cannot be applied."""

import pytest
import torch

from trireid.evaluation.applied_rule import applied_rule, unknown_messages
from trireid.evaluation.protocols import ranking_masks
from trireid.types import Labels, Protocol


def draw(count, first, generator):
    numbers = [torch.randint(-1, most, (count,), generator=generator) for most in (5, 3, 3)]
    return Labels(*numbers, item=torch.arange(first, first + count))


@pytest.mark.parametrize("exclude", ["camera", "scene", "cross_camera", "none"])
def test_counts_equal_the_whole_masks(exclude):
    generator = torch.Generator().manual_seed(1)
    query, gallery, protocol = draw(30, 0, generator), draw(50, 20, generator), Protocol("p", exclude)
    hidden = ranking_masks(query, gallery, protocol)[1]
    itself = query.item[:, None] == gallery.item
    rule = applied_rule(query, gallery, protocol, num_unmatched=3)
    assert (rule.num_pairs, rule.num_hidden_itself) == (1500, int(itself.sum()))
    assert rule.num_hidden_by_rule == int((hidden & ~itself).sum())
    assert f"rule {exclude}: hid {rule.num_hidden_by_rule} " in rule.text
    assert "10 of an item with itself, of 1,500; 3 of 30 queries without a match" in rule.text
    assert rule.as_dict()["text"] == rule.text


def test_a_rule_that_cannot_be_applied_is_reported_for_either_side():
    codes, known, item = torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.arange(4)
    full, none = Labels(codes, known, known, item), Labels(codes, codes - 1, known, item)
    some = Labels(codes, torch.tensor([0, 1, -1, -1]), known, item)
    protocol = Protocol("p", "camera")
    assert unknown_messages(full, full, protocol) == []
    assert (
        unknown_messages(none, none, Protocol("p", "none"))
        == unknown_messages(none, none, Protocol("p", "scene"))
        == []
    )
    [line] = unknown_messages(full, none, protocol)
    assert "the camera of 4 of 4 gallery items is not known: the rule camera can hide nothing" in line
    [line] = unknown_messages(some, none, protocol)
    assert "the camera of 2 of 4 queries and 4 of 4 gallery items is not known" in line
    [line] = unknown_messages(some, some, protocol)
    assert "the camera of 2 of 4 queries is not known: only the item itself is excluded for them" in line
