"""The command `trireid`. Commands import what they need when they run, so that --help is quick."""

from __future__ import annotations

__all__ = ["evaluate_from_upstream", "main", "train_from_upstream"]


def main() -> None:
    """Run the command line."""
    _run("trireid.cli.app", "app")


def train_from_upstream() -> None:
    """Run `train_net.py`."""
    _run("trireid.cli.upstream_scripts", "train_from_upstream")


def evaluate_from_upstream() -> None:
    """Run `test_net.py`."""
    _run("trireid.cli.upstream_scripts", "evaluate_from_upstream")


def _run(module: str, name: str) -> None:
    """Import and call; Ctrl-C and a lack of memory end in one line during the imports as well."""
    from trireid.cli.address_space import watch_address_space
    from trireid.cli.guard import OneInterrupt, guarded, rest_idle_threads

    with OneInterrupt(), guarded():
        from importlib import import_module

        rest_idle_threads()
        watch_address_space()
        getattr(import_module(module), name)()
