"""Synthetic tri-modal sets, where only the spectra together identify (see identities.py)."""

from trireid.data.synthetic.writer import SplitCount, SyntheticSummary, write_synthetic

__all__ = ["SplitCount", "SyntheticSummary", "write_synthetic"]
