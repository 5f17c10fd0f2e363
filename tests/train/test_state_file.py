"""What stands in the place of a state to resume from."""

import os

import pytest

from trireid.errors import RunError
from trireid.train.state import load_state


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "state.pt")
    with pytest.raises(RunError, match="a named pipe, not a regular file"):
        load_state(tmp_path / "state.pt")
