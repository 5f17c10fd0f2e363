"""What holds for all tests."""

import os

# Before torch is imported: threads that spin while they wait slow all tests down where a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
