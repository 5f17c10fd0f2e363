"""The errors a user can cause. The command line prints their one line and exits with code 2."""

from __future__ import annotations


class TrireidError(Exception):
    """Base of every error that a user's input can cause: what was given, what is allowed, what to do."""


class ConfigError(TrireidError):
    """A setting that does not exist, has no meaning here or lies outside its range."""


class DataError(TrireidError):
    """A data set that cannot be read as its format says: names, folders, images, splits."""


class CheckpointError(TrireidError):
    """A checkpoint or weight file that is damaged or does not fit the model."""


class InputError(TrireidError, ValueError):
    """A tensor or argument given to a public function that has the wrong shape or value."""


class RunError(TrireidError):
    """A run folder that cannot be written, resumed or read."""
