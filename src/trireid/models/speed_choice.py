"""Whether compilation and recording are worth their time: one decision for training, test and embedding."""

from __future__ import annotations

from dataclasses import dataclass

from trireid.names import Automatic, Precision

COMPILE_STEPS = 1_000
"""Steps left from which on compiled blocks save more than their compilation takes (about 15 s against 15 to 20 ms)."""
RECORD_STEPS = 200
"""Steps left from which on a recording pays for the second that it takes."""
COMPILE_ITEMS = 200_000
"""Items from which on compilation pays in inference: about 20 s, and about 0.1 ms saved per item (ViT-B/16, H100)."""
RECORD_ITEMS = 8_192
"""Items from which on a recording pays for the second that it takes."""


@dataclass(frozen=True)
class Speed:
    """How a model is run, and why.

    Attributes:
        compiled: the blocks of the ViT are compiled.
        recorded: a step, or a batch, is recorded as a CUDA graph and replayed.
        reason: of the choice, a part of a sentence that follows "because".
        unit: what is recorded: `step` or `batch`.
    """

    compiled: bool
    recorded: bool
    reason: str
    unit: str = "step"

    def __str__(self) -> str:
        """The choice and its reason, for a log."""
        record = f"a recorded {self.unit}"
        chosen = {
            (True, True): f"compiled blocks and {record}",
            (True, False): f"compiled blocks without {record}",
            (False, True): f"{record} without compiled blocks",
            (False, False): f"plain {self.unit}{'e' if self.unit == 'batch' else ''}s",
        }
        return f"{chosen[self.compiled, self.recorded]}, because {self.reason}"


def training_speed(
    *,
    compiled: Automatic,
    recorded: Automatic,
    device: str,
    num_processes: int,
    precision: Precision,
    complete: bool,
    steps_per_epoch: int,
    epochs: int,
    obstacle: str | None = None,
) -> Speed:
    """Choose for a training run by the work that is left.

    Args:
        compiled, recorded: the settings `train.compile` and `train.cuda_graph`; `auto` leaves the choice to this.
        device: type of the device, such as `cuda`.
        num_processes: of the run, for the reason. With two, recorded steps were the fastest as well.
        precision: in which the model computes; fp16 changes its loss scale between steps and is not recorded.
        complete: no triplet lacks a modality in training. Where some do, the number of images varies by step, and no
            step is recorded, whatever is set.
        steps_per_epoch, epochs: that are left.
        obstacle: why nothing can be compiled here; None: it can be.

    Example:
        >>> on_a_gpu = {"device": "cuda", "num_processes": 1, "precision": "bf16", "complete": True}
        >>> print(training_speed(compiled="auto", recorded="auto", **on_a_gpu, steps_per_epoch=53, epochs=50))
        compiled blocks and a recorded step, because 50 epochs of 53 steps are left on one GPU
    """
    steps = steps_per_epoch * epochs
    where = f"{num_processes} GPUs" if num_processes > 1 else "one GPU"
    reason = f"{epochs} epoch{'s' * (epochs != 1)} of {steps_per_epoch} steps are left on {where}"
    return _chosen(
        compiled,
        recorded,
        compiling_pays=steps >= COMPILE_STEPS,
        recording_pays=steps >= RECORD_STEPS and precision != "fp16",
        reason=reason if complete else f"{reason} and triplets lack modalities in training",
        device=device,
        obstacle=obstacle,
        complete=complete,
        unit="step",
    )


def inference_speed(
    *, compiled: Automatic, recorded: Automatic, device: str, num_items: int, obstacle: str | None = None
) -> Speed:
    """Choose for a test or an embedding by the number of items.

    Args:
        compiled, recorded: `auto` leaves the choice to this.
        device: type of the device, such as `cuda`; elsewhere nothing is recorded, and compiled only where that is set.
        num_items: that the model will see, as far as it is known.
        obstacle: as in `training_speed`.

    Example:
        >>> print(inference_speed(compiled="auto", recorded="auto", device="cuda", num_items=10_290))
        a recorded batch without compiled blocks, because 10290 items are to be computed on a GPU
    """
    return _chosen(
        compiled,
        recorded,
        compiling_pays=num_items >= COMPILE_ITEMS,
        recording_pays=num_items >= RECORD_ITEMS,
        reason=f"{num_items} items are to be computed on a GPU",
        device=device,
        obstacle=obstacle,
        unit="batch",
    )


def _chosen(
    compiled: Automatic,
    recorded: Automatic,
    *,
    compiling_pays: bool,
    recording_pays: bool,
    reason: str,
    device: str,
    obstacle: str | None,
    unit: str,
    complete: bool = True,
) -> Speed:
    """Settings as they are, and what pays where they are `auto`: on a CPU nothing does, and nothing can be recorded."""
    on_gpu = device == "cuda"
    reasons = [reason if on_gpu else "the device is a CPU"]
    if compiled == "auto":
        reasons += [obstacle] if obstacle is not None and compiling_pays and on_gpu else []
        compiled = on_gpu and compiling_pays and obstacle is None
    else:
        reasons.append(f"train.compile is {str(compiled).lower()}")
    if recorded == "auto":
        recorded = on_gpu and recording_pays
    elif on_gpu and complete:
        reasons.append(f"train.cuda_graph is {str(recorded).lower()}")
    return Speed(compiled, recorded and on_gpu and complete, " and ".join(reasons), unit)
