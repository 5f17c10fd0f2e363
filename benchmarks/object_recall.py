"""How much of the object each guidance keeps inside a pretrained ViT, without any training: chance is the keep ratio.

python benchmarks/object_recall.py WEIGHTS [--identities 24]    (a file of vit_small_patch14_dinov2; under a minute)

Synthetic `hard` persons at 224 x 112 (128 patches): half of the patches is kept after a block; printed is the share of
the patches that mostly show the object (not the background, not a distractor) among the kept ones. `foresight` keeps
what the CLS tokens attend to in the last quarter of the blocks: the teacher of the learned guidance, which an early
cut cannot see. `consensus` of it adds the mean over the spectra at each place.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import functional

from trireid.cli.guard import guarded
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.synthetic.difficulty import HARD
from trireid.data.synthetic.identities import draw_identities
from trireid.data.synthetic.render import Shot, object_mask, render_triplet
from trireid.data.transforms import EvaluationTransform
from trireid.models import guidance
from trireid.models.attention import attention_scores
from trireid.models.build import build_model
from trireid.models.selection import select_top
from trireid.models.slimming import Guidance, RowTokens, SlimmingStage

SIZE, PATCH, BLOCKS = (224, 112), 14, (2, 3, 4, 6)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GUIDANCES: tuple[Guidance, ...] = ("self", "cross", "both", "distinct", "cls_attention", "random")


def triplets(number: int) -> tuple[Tensor, Tensor]:
    """Images `(B, M, 3, H, W)` and which patches mostly show the object, `(B, N)` bool."""
    names = [f"{index:06d}" for index in range(number)]
    looks = draw_identities(names, kind="person", difficulty=HARD, seed=0, split="train")
    transform, images, objects = EvaluationTransform(SIZE, MEAN, STD), [], []
    for index, name in enumerate(names):
        shot = Shot(name=f"{name}_cam1_0_00.jpg", identity=name, view=index % 2 + 1, light=index % 2 + 1)
        pixels = render_triplet(looks[name], shot, kind="person", size=SIZE, difficulty=HARD, seed=0)
        mask = object_mask(looks[name], shot, kind="person", size=SIZE, difficulty=HARD, seed=0)
        images.append(transform(list(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))))
        share = functional.avg_pool2d(torch.from_numpy(mask.copy())[None, None].float(), PATCH)
        objects.append(share.flatten() > 0.5)
    return torch.stack(images), torch.stack(objects)


def recall(scores: Tensor, objects: Tensor) -> float:
    """Share of the object's patches among the half with the highest scores; scores `(B * M, N)`, objects `(B, N)`."""
    shown = objects.repeat_interleave(len(scores) // len(objects), dim=0)
    kept = select_top(scores, scores.shape[1] // 2)[1]
    return float((kept & shown).sum() / shown.sum())


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--identities", type=int, default=24)
    arguments = parser.parse_args()
    settings = ["model.backbone.name=dinov2_vit_s14", "model.head=none", "data.image_size=[224,112]"]
    config = override_config(Config(), [*settings, f"model.backbone.pretrained={arguments.weights}"])
    backbone = build_model(config.model, image_size=SIZE, num_classes=0, num_cameras=0).backbone.eval()
    images, objects = triplets(arguments.identities)
    present = torch.ones(images.shape[:2], dtype=torch.bool)
    num_places = objects.shape[1]
    places = torch.arange(num_places).expand(present.numel(), -1)
    sequence, late = backbone.embed(images.flatten(0, 1), None), []
    print(f"{objects.float().mean():.2f} of the patches show the object\nafter block  " + "  ".join(GUIDANCES))
    for number, block in enumerate(backbone.vit.blocks, start=1):
        before, sequence = sequence, block(sequence)
        tokens = RowTokens(sequence, places)
        context = {"block": block, "before": before, "present": present, "rows": None, "num_places": num_places}
        if number in BLOCKS:
            scores = {
                name: guidance.stage_scores(SlimmingStage(number, 0.5, name), tokens, **context) for name in GUIDANCES
            }
            print(
                f"{number:11d}  "
                + "  ".join(f"{recall(each, objects):{len(name)}.2f}" for name, each in scores.items())
            )
        if number >= backbone.first_foreseen:
            late.append(attention_scores(block, before, num_patches=num_places))
    foresight = torch.stack(late).mean(dim=0)
    agreed = foresight + guidance.mean_by_place(foresight, places, present, None, num_places)
    print(f"foresight {recall(foresight, objects):.2f}, its consensus {recall(agreed, objects):.2f}")


if __name__ == "__main__":
    with guarded():
        main()
