"""The seven kinds of input, by name."""

from __future__ import annotations

from fuzz import checkpoints, images, manifests, numbers, run_folders, settings, trees
from fuzz.runner import Kind

KINDS: dict[str, Kind] = {
    module.KIND.name: module.KIND for module in (settings, manifests, images, trees, checkpoints, run_folders, numbers)
}
