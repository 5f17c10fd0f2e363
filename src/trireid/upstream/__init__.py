"""DeMo, the public code that this package follows: its settings, its checkpoints and its way of training."""

from trireid.lazy import submodules

__getattr__ = submodules(__name__)
