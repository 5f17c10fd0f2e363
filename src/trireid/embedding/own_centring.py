"""Whether the features of a trained model are centred, where they are not ranked by `trireid test`."""

from __future__ import annotations

import logging
from dataclasses import replace

from trireid.errors import InputError, printable
from trireid.names import Centring
from trireid.train.checkpoint import Checkpoint

_log = logging.getLogger(__name__)


def with_own_centring(checkpoint: Checkpoint, centring: str | None) -> Checkpoint:
    """The checkpoint with another `evaluate.centring`; the fingerprint of its features follows.

    Args:
        checkpoint: of a run.
        centring: `none` or `train`; None: as the run. A mean of each camera is none of a model, but of a set of items:
            where a run is evaluated by it, the features are not centred, which is logged. So is adaptive fusion, which
            is of a ranking.

    Raises:
        InputError: it is something else.
    """
    own: Centring = checkpoint.config.evaluate.centring
    if centring not in (None, "none", "train"):
        by_camera = (
            "; camera is of a set of items: for trireid test, embed, gallery create and gallery add --create, and as "
            "Embeddings.centred_by_camera()"
        )
        raise InputError(
            f"centring is {printable(str(centring), limit=40)!r}: allowed are none and train"
            f"{by_camera if centring == 'camera' else ''}"
        )
    if centring is None and own == "camera":
        _log.warning(
            "note: the run is evaluated with evaluate.centring=camera, which is of a set and not of a model: these "
            "features are not centred (trireid embed --centring camera does it, and Embeddings.centred_by_camera())"
        )
    if power := checkpoint.config.evaluate.adaptive_fusion:
        _log.warning(
            "note: the run is evaluated with evaluate.adaptive_fusion=%g, which is no part of its embeddings: "
            "galleries, services and calibrations compare whole features, so their accuracy is not that of trireid "
            "test",
            power,
        )
    chosen = centring or ("none" if own == "camera" else own)
    evaluate = checkpoint.config.evaluate.model_copy(update={"centring": chosen})
    return replace(checkpoint, config=checkpoint.config.model_copy(update={"evaluate": evaluate}))
