"""What holds for all tests."""

import os

# Before torch is imported: threads that spin while they wait slow all tests down where a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

import milvus_server


@pytest.fixture(scope="session")
def server():
    """One server for all tests of the tier."""
    reason = milvus_server.why_not()
    if reason is not None:
        pytest.skip(reason)
    with milvus_server.running() as running:
        yield running
