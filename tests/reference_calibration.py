"""Slow, literal definitions of error rates and of their resampling: one pair of items at a time."""

import math


def cosine(one, other):
    length = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / length if length else 0.0


def is_hidden(one, other, exclude):
    place = {"camera": "camera", "scene": "scene", "cross_camera": "camera", "none": None}[exclude]
    if place is None or getattr(one, place) is None or getattr(one, place) != getattr(other, place):
        return False
    return exclude == "cross_camera" or one.identity == other.identity


def all_pairs(first, second, exclude):
    """(cosine, identity, identity) of each pair of rows (item, vector); `second` None: pairs within `first`."""
    pairs = []
    for i, (one, u) in enumerate(first):
        for j, (other, v) in enumerate(first if second is None else second):
            if (second is None and j <= i) or one.key == other.key or is_hidden(one, other, exclude):
                continue
            pairs.append((cosine(u, v), one.identity, other.identity))
    return pairs


def false_match_rate(pairs, threshold, weight=lambda identity: 1):
    accepted = total = 0
    for value, one, other in pairs:
        if one != other:
            total += weight(one) * weight(other)
            accepted += weight(one) * weight(other) * (value >= threshold)
    return accepted / total if total else math.nan


def false_non_match_rate(pairs, threshold, weight=lambda identity: 1):
    refused = total = 0
    for value, one, other in pairs:
        if one == other:
            total += weight(one)
            refused += weight(one) * (value < threshold)
    return refused / total if total else math.nan


def identification_rates(queries, gallery, threshold, exclude):
    """FPIR and FNIR at rank 1, each query searched without its mates and with them."""
    positive = unmated = negative = mated = 0
    for one, u in queries:
        mates, others = [], []
        for other, v in gallery:
            if one.key != other.key and not is_hidden(one, other, exclude):
                (mates if one.identity == other.identity else others).append(cosine(u, v))
        if others:
            unmated += 1
            positive += max(others) >= threshold
        if mates:
            mated += 1
            is_first = not others or max(mates) > max(others)
            negative += not (is_first and max(mates) >= threshold)
    return positive / unmated, negative / mated
