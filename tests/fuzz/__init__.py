"""Broken and odd input of seven kinds, in great number: each must work, or end in one clear line and exit code 2.

`make fuzz` runs all of it; `make fuzz FUZZ=--help` says how to run a part, or one case again.
"""
