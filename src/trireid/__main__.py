"""`python -m trireid`, also for launchers of several processes: `accelerate launch -m trireid train ...`."""

from trireid.cli import main

main()
