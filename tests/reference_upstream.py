"""Upstream's model written out from its description, on upstream's own key names: no module of the package is used.

Everything is float64 and literal: attention head by head, experts one by one, slots patch by patch.
"""

from __future__ import annotations

import math

import torch

SPECTRA = ("rgb", "nir", "tir")
SUBSETS = {"r": (0,), "n": (1,), "t": (2,), "rn": (0, 1), "rt": (0, 2), "nt": (1, 2), "rnt": (0, 1, 2)}


def quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight + bias


def batch_norm(x, state, name, training):
    """(B, F). Training uses the statistics of the batch, evaluation the running ones."""
    if training:
        mean, var = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
    else:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return (x - mean) / torch.sqrt(var + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def multi_head(query, tokens, in_weight, in_bias, out_weight, out_bias, heads):
    """Queries (Q, D) over tokens (T, D), head by head."""
    dim = query.shape[-1]
    q = query @ in_weight[:dim].T + in_bias[:dim]
    k = tokens @ in_weight[dim : 2 * dim].T + in_bias[dim : 2 * dim]
    v = tokens @ in_weight[2 * dim :].T + in_bias[2 * dim :]
    width, parts = dim // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = q[:, part] @ k[:, part].T / math.sqrt(width)
        weights = torch.exp(logits - logits.max(-1, keepdim=True).values)
        parts.append(weights / weights.sum(-1, keepdim=True) @ v[:, part])
    return torch.cat(parts, -1) @ out_weight.T + out_bias


def patchify(image, filters, bias=None):
    """(3, H, W) -> (N, D), row by row."""
    size, rows = filters.shape[-1], []
    for top in range(0, image.shape[1], size):
        for left in range(0, image.shape[2], size):
            window = image[:, top : top + size, left : left + size]
            value = (filters * window).sum((1, 2, 3))
            rows.append(value if bias is None else value + bias)
    return torch.stack(rows)


def clip_tower(s, image, camera, sie):
    """(1 + N, dim): all tokens after ln_post and the projection. The camera's vector is added to CLS alone."""
    base = "BACKBONE.base."
    cls = s[f"{base}class_embedding"] + sie * s["BACKBONE.cv_embed"][camera, 0]
    x = torch.cat([cls[None], patchify(image, s[f"{base}conv1.weight"])]) + s[f"{base}positional_embedding"]
    x = layer_norm(x, s[f"{base}ln_pre.weight"], s[f"{base}ln_pre.bias"])
    index = 0
    while f"{base}transformer.resblocks.{index}.ln_1.weight" in s:
        b = f"{base}transformer.resblocks.{index}."
        y = layer_norm(x, s[f"{b}ln_1.weight"], s[f"{b}ln_1.bias"])
        attn = [s[f"{b}attn.{k}"] for k in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]
        x = x + multi_head(y, y, *attn, x.shape[-1] // 64)
        y = layer_norm(x, s[f"{b}ln_2.weight"], s[f"{b}ln_2.bias"])
        y = quick_gelu(y @ s[f"{b}mlp.c_fc.weight"].T + s[f"{b}mlp.c_fc.bias"])
        x = x + y @ s[f"{b}mlp.c_proj.weight"].T + s[f"{b}mlp.c_proj.bias"]
        index += 1
    return layer_norm(x, s[f"{base}ln_post.weight"], s[f"{base}ln_post.bias"]) @ s[f"{base}proj"]


def imagenet_tower(s, image, camera, sie):
    """(1 + N, width): all tokens after the last norm. The camera's vector is added to every token."""
    base, eps = "BACKBONE.base.", 1e-6
    patches = patchify(image, s[f"{base}patch_embed.proj.weight"], s[f"{base}patch_embed.proj.bias"])
    x = torch.cat([s[f"{base}cls_token"][0], patches]) + s[f"{base}pos_embed"][0]
    x = x + sie * s[f"{base}sie_embed"][camera, 0]
    index = 0
    while f"{base}blocks.{index}.norm1.weight" in s:
        b = f"{base}blocks.{index}."
        y = layer_norm(x, s[f"{b}norm1.weight"], s[f"{b}norm1.bias"], eps)
        attn = [s[f"{b}attn.{k}"] for k in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")]
        x = x + multi_head(y, y, *attn, x.shape[-1] // 64)
        y = layer_norm(x, s[f"{b}norm2.weight"], s[f"{b}norm2.bias"], eps)
        y = gelu(y @ s[f"{b}mlp.fc1.weight"].T + s[f"{b}mlp.fc1.bias"])
        x = x + y @ s[f"{b}mlp.fc2.weight"].T + s[f"{b}mlp.fc2.bias"]
        index += 1
    return layer_norm(x, s[f"{base}norm.weight"], s[f"{base}norm.bias"], eps)


def pife(s, name, tokens):
    joined = torch.cat([tokens[0], tokens[1:].mean(0)])
    joined = layer_norm(joined, s[f"{name}_reduce.0.weight"], s[f"{name}_reduce.0.bias"])
    return quick_gelu(s[f"{name}_reduce.1.weight"] @ joined + s[f"{name}_reduce.1.bias"])


def hdm(s, sets):
    """sets: three (1 + N, D), the global first -> seven vectors (D), by D // 64 heads each."""
    vectors = []
    for name, members in SUBSETS.items():
        tokens = torch.cat([sets[m] for m in members])
        p = f"generalFusion.{name}."
        weights = [s[f"{p}{k}"] for k in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]
        vectors.append(multi_head(s[f"generalFusion.{name}_token"][0], tokens, *weights, tokens.shape[1] // 64)[0])
    return vectors


def atmoe(s, vectors, training):
    """vectors: seven (B, D) -> (B, 7 * D). Heads are counted by the keys."""
    heads = 0
    while f"generalFusion.moe.experts.{heads}.expertHead.0.mlp.0.weight" in s:
        heads += 1
    gate = "generalFusion.moe.gating_network.gate."
    batch, dim = vectors[0].shape
    width = dim // heads
    query = torch.cat(vectors, -1) @ s[f"{gate}linear_re.0.weight"].T + s[f"{gate}linear_re.0.bias"]
    query = batch_norm(quick_gelu(query), s, f"{gate}linear_re.2", training) @ s[f"{gate}q_.weight"].T
    keys = [vector @ s[f"{gate}k_.weight"].T for vector in vectors]
    of_heads = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = torch.stack([(query[:, part] * key[:, part]).sum(-1) / math.sqrt(width) for key in keys], -1)
        gates = torch.exp(logits - logits.max(-1, keepdim=True).values)
        gates = gates / gates.sum(-1, keepdim=True)  # (B, 7)
        outs = []
        for e in range(7):
            mlp = f"generalFusion.moe.experts.{h}.expertHead.{e}.mlp."
            y = quick_gelu(vectors[e][:, part] @ s[f"{mlp}0.weight"].T + s[f"{mlp}0.bias"])
            outs.append(batch_norm(y, s, f"{mlp}2", training) * gates[:, e : e + 1])
        of_heads.append(torch.stack(outs, 1))  # (B, 7, d)
    return torch.cat(of_heads, -1).reshape(batch, 7 * dim)


def min_max(x):
    return (x - x.min()) / (x.max() - x.min() + 1e-8)


def cosines(patches, guide):
    return torch.stack([(p * guide).sum() / (p.norm() * guide.norm()) for p in patches])


def sdtps(s, patches, guides, sparse_ratio=0.5, beta=0.25):
    """patches: three (N, D), guides: three (D) -> (3 * D)."""
    feature = []
    for m, name in enumerate(SPECTRA):
        x, p = patches[m], f"sdtps.{name}_sparse.score_predictor."
        hidden = gelu(x @ s[f"{p}0.weight"].T + s[f"{p}0.bias"])
        predicted = 1 / (1 + torch.exp(-(hidden @ s[f"{p}2.weight"].T + s[f"{p}2.bias"])[:, 0]))
        others = [min_max(cosines(x, guides[g])) for g in range(3) if g != m]
        own = min_max(cosines(x, guides[m]))
        score = (1 - 2 * beta) * predicted + beta * (others[0] + others[1] + 2 * own)
        count = max(1, math.ceil(len(x) * sparse_ratio))
        ranked = sorted(range(len(x)), key=lambda n: -float(score[n]))
        kept, dropped = ranked[:count], ranked[count:]
        a = f"sdtps.{name}_aggr."
        y = layer_norm(x[kept], s[f"{a}weight.0.weight"], s[f"{a}weight.0.bias"])
        y = gelu(y @ s[f"{a}weight.1.weight"].T + s[f"{a}weight.1.bias"])
        logits = (y @ s[f"{a}weight.3.weight"].T + s[f"{a}weight.3.bias"]) * s[f"{a}scale"][0, 0, 0]  # (K, A)
        slots = [
            sum(w * x[n] for w, n in zip(torch.exp(column) / torch.exp(column).sum(), kept, strict=True))
            for column in logits.T
        ]
        share = torch.exp(score[dropped]) / torch.exp(score[dropped]).sum()
        slots.append(sum(w * x[n] for w, n in zip(share, dropped, strict=True)))
        feature.append(torch.stack(slots).mean(0))
    return torch.cat(feature)


def forward(state, images, cameras, *, sie=1.0, training=False):
    """images (B, 3, 3, H, W), a withheld modality being zeros.

    Returns patterns 1 and 2 (None without a head) and, by pair, the scores.
    """
    s = {key: value.double() for key, value in state.items()}
    tower = clip_tower if "BACKBONE.base.proj" in s else imagenet_tower
    per_item, pattern1, single = [], [], [[], [], []]
    for image, camera in zip(images.double(), cameras, strict=True):
        tokens = [tower(s, image[m], int(camera), sie) for m in range(3)]
        reduced = [pife(s, name, tokens[m]) for m, name in enumerate(SPECTRA)]
        pattern1.append(torch.cat(reduced))
        for m in range(3):
            single[m].append(reduced[m])
        if "generalFusion.r_token" in s:  # HDM, with ATMoE or alone
            per_item.append(hdm(s, [torch.cat([reduced[m][None], tokens[m][1:]]) for m in range(3)]))
        elif "classifier_sdtps.weight" in s:
            per_item.append(sdtps(s, [tokens[m][1:] for m in range(3)], reduced))
    pattern1 = torch.stack(pattern1)
    if "generalFusion.moe.experts.0.expertHead.0.mlp.0.weight" in s:
        vectors = [torch.stack([item[e] for item in per_item]) for e in range(7)]
        pattern2 = atmoe(s, vectors, training)
    elif "generalFusion.r_token" in s:
        pattern2 = torch.stack([torch.cat(item) for item in per_item])
    else:
        pattern2 = torch.stack(per_item) if per_item else None
    suffix = "_sdtps" if "classifier_sdtps.weight" in s else "_moe"
    pairs = [] if pattern2 is None else [(pattern2, suffix)]
    if "classifier.weight" in s:
        pairs.append((pattern1, ""))
    else:
        pairs += [(torch.stack(single[m]), f"_{letter}") for m, letter in enumerate("rnt")]
    scored = [(batch_norm(f, s, f"bottleneck{end}", training) @ s[f"classifier{end}.weight"].T, f) for f, end in pairs]
    return pattern1, pattern2, scored


def learning_rate(key, *, clip, lr):
    """Of one parameter, by its name: biases doubled, then the whole tower set to one rate of its own."""
    rate = 2 * lr if "bias" in key else lr
    if "base" in key:
        rate = 5e-6 if clip else 0.8 * lr
    return rate


def first_loss(scored, labels):
    """0.25 x smoothed cross-entropy + soft-margin batch-hard triplet, summed over the pairs."""
    total = 0.0
    for scores, feature in scored:
        num_classes, items = scores.shape[1], len(labels)
        for i in range(items):
            log_p = scores[i] - torch.log(torch.exp(scores[i]).sum())
            target = torch.full((num_classes,), 0.1 / num_classes, dtype=torch.float64)
            target[labels[i]] += 0.9
            total += 0.25 * float(-(target * log_p).sum()) / items
            distances = [float((feature[i] - feature[j]).norm()) for j in range(items)]
            far = max(d for d, label in zip(distances, labels, strict=True) if label == labels[i])
            near = min(d for d, label in zip(distances, labels, strict=True) if label != labels[i])
            total += math.log1p(math.exp(far - near)) / items
    return total
