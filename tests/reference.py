"""Literal, slow definitions that the fast code is held against. Loops everywhere, nothing shared with the package."""

from __future__ import annotations

import math

import torch


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def min_max(values):
    low, high = min(values), max(values)
    return [(v - low) / (high - low + 1e-8) for v in values]


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def softmax(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


def sdtps_reference(patches, guides, weights, *, sparse_ratio, aggr_ratio, beta):
    """Contract S3-S5, S8, S9, S12 for one item by loops.

    patches: (M, N, D), guides: (M, D); weights: one dict of tensors a modality.
    Returns feature (M * D), and per modality the kept indices and the slots (A + 1, D).
    """
    num_modalities, num_patches = patches.shape[:2]
    kept_all, slots_all, feature = [], [], []
    for m in range(num_modalities):
        w = weights[m]
        own = min_max([cosine(patches[m, n], guides[m]) for n in range(num_patches)])
        others = [
            min_max([cosine(patches[m, n], guides[g]) for n in range(num_patches)])
            for g in range(num_modalities)
            if g != m
        ]
        scores = []
        for n in range(num_patches):
            hidden = w["p0_w"] @ patches[m, n] + w["p0_b"]
            hidden = torch.tensor([gelu(float(h)) for h in hidden], dtype=patches.dtype)
            logit = float(w["p1_w"] @ hidden + w["p1_b"])
            predicted = 1 / (1 + math.exp(-logit))
            scores.append((1 - 2 * beta) * predicted + beta * (sum(o[n] for o in others) + 2 * own[n]))
        count = max(1, math.ceil(num_patches * sparse_ratio))
        ranked = sorted(range(num_patches), key=lambda n: (-scores[n], n))
        kept, dropped = sorted(ranked[:count]), sorted(ranked[count:])
        num_slots = max(1, int(num_patches * aggr_ratio * sparse_ratio))
        logits = []
        for n in kept:
            x = patches[m, n]
            x = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * w["ln_w"] + w["ln_b"]
            hidden = w["a0_w"] @ x + w["a0_b"]
            hidden = torch.tensor([gelu(float(h)) for h in hidden], dtype=patches.dtype)
            logits.append(w["a1_w"] @ hidden * w["scale"])
        slots = []
        for a in range(num_slots):
            share = softmax([float(row[a]) for row in logits])
            slots.append(sum(s * patches[m, n] for s, n in zip(share, kept, strict=True)))
        share = softmax([scores[n] for n in dropped])
        slots.append(sum(s * patches[m, n] for s, n in zip(share, dropped, strict=True)))
        slots = torch.stack(slots)
        kept_all.append(kept)
        slots_all.append(slots)
        feature.append(slots.mean(0))
    return torch.cat(feature), kept_all, torch.stack(slots_all)


def quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def attention(query, tokens, in_weight, in_bias, out_weight, out_bias, num_heads):
    """Multi-head attention of one query (D,) over tokens (T, D), head by head. in_weight (3, D, D)."""
    dim = query.shape[0]
    width = dim // num_heads
    q = in_weight[0] @ query + in_bias[0]
    outs = []
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        logits, values = [], []
        for token in tokens:
            k = in_weight[1] @ token + in_bias[1]
            v = in_weight[2] @ token + in_bias[2]
            logits.append(float((q[part] * k[part]).sum() / math.sqrt(width)))
            values.append(v[part])
        share = softmax(logits)
        outs.append(sum(s * v for s, v in zip(share, values, strict=True)))
    return out_weight @ torch.cat(outs) + out_bias


def batch_norm_eval(x, norm):
    return (x - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias
