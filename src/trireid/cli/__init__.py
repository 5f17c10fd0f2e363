"""The command `trireid`. Commands import what they need when they run, so that --help is quick."""

from trireid.cli.app import main

__all__ = ["main"]
