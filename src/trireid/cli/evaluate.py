"""`trireid test` and `test_net.py`: the figures of a checkpoint on its query and gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trireid.cli.console import note, progress, say, show_figures
from trireid.cli.train import show_settings
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.errors import ConfigError

if TYPE_CHECKING:
    from trireid.data.labels import LabelMap
    from trireid.evaluation.evaluate import EvaluationResult
    from trireid.models.reid import ReIDModel
    from trireid.train.checkpoint import Checkpoint

LETTERS = {"r": "rgb", "n": "nir", "t": "tir"}


def run_checkpoint(path: Path, *, overrides: Sequence[str] = ()) -> EvaluationResult:
    """Evaluate a checkpoint with the configuration it carries, some settings changed.

    Raises:
        TrireidError: a setting, the checkpoint or the data set is wrong.
    """
    from trireid.train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    return run(checkpoint, override_config(checkpoint.config, overrides))


def run(checkpoint: Checkpoint, config: Config, *, notes: Sequence[str] = ()) -> EvaluationResult:
    """Evaluate a checkpoint with a resolved configuration and print its figures.

    Raises:
        TrireidError: the weights do not fit the configuration, or the data set is wrong.
    """
    from trireid.train.checkpoint import build_for

    show_settings(config, notes)
    say(f"checkpoint: {checkpoint.path}, epoch {checkpoint.epoch}{', ' if checkpoint.note else ''}{checkpoint.note}")
    result = evaluate(build_for(checkpoint, config), checkpoint.label_map, config)
    for line in result.messages:
        note(line)
    show_figures(f"{result.num_queries} queries, {result.num_gallery} in the gallery, test split", result.metrics)
    return result


def evaluate(model: ReIDModel, label_map: LabelMap, config: Config) -> EvaluationResult:
    """Rank the test split of a configuration by a model's features, with a progress bar."""
    from trireid.evaluation.evaluate import Rerank, evaluate_model
    from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
    from trireid.train.inputs import open_split, scan_index

    settings = config.evaluate
    device = resolve_device(config.train.device)
    index = scan_index(config, progress=True)
    split = open_split("test", index.query, index.gallery, index.protocol, label_map, config)
    rerank = Rerank(settings.rerank_k1, settings.rerank_k2, settings.rerank_lambda) if settings.rerank else None
    done = 0
    with progress("evaluating") as report:

        def advance(number: int) -> None:
            nonlocal done
            done += number
            report(done, split.num_items)

        return evaluate_model(
            model.to(device),
            split.query_loader,
            split.gallery_loader,
            query_labels=split.query_labels,
            gallery_labels=split.gallery_labels,
            protocol=split.protocol,
            device=device,
            dtype=autocast_dtype(resolve_precision(config.train.precision, device)),
            normalise=settings.normalise,
            rerank=rerank,
            missing=settings.missing,
            query_names=[record.name for record in split.query_records],
            gallery_names=[record.name for record in split.gallery_records],
            progress=advance,
        )


def parse_missing(text: str) -> list[str]:
    """Modalities by letters (`rn`) or names (`rgb,nir`), in the order rgb, nir, tir; `none` is no modality.

    Raises:
        ConfigError: if it names something else.
    """
    wanted = text.strip().lower()
    if wanted in ("", "none", "nothing"):
        return []
    parts = (
        [part.strip() for part in wanted.split(",")] if "," in wanted or wanted in LETTERS.values() else list(wanted)
    )
    names = [LETTERS.get(part, part) for part in parts]
    if len(set(names)) < len(names) or not set(names) <= set(LETTERS.values()):
        raise ConfigError(f"--missing: given {text}, should be letters such as rn or names such as rgb,nir")
    return [name for name in LETTERS.values() if name in names]
