"""What several processes bring together."""

from __future__ import annotations

from pathlib import Path

import pytest

from processes import run_processes
from trireid.errors import ConfigError
from trireid.train.gathering import check_batch_size


@pytest.mark.ddp
@pytest.mark.slow
def test_what_two_processes_gather_is_what_one_computes() -> None:
    done = run_processes(Path(__file__).with_name("gathering_script.py"), number=2)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_batch_must_be_shared_in_equal_parts() -> None:
    for number in (1, 2, 4):
        check_batch_size(64, number)
    with pytest.raises(ConfigError, match=r"data\.batch_size 64 is not a multiple of the 3 processes"):
        check_batch_size(64, 3)
