"""Synthetic tri-modal data sets, in which only several spectra together tell identities apart (see identities.py)."""

from trireid.data.synthetic.writer import SplitCount, SyntheticSummary, write_synthetic

__all__ = ["SplitCount", "SyntheticSummary", "write_synthetic"]
