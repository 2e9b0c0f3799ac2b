"""The parts of tools/compare.py: groups of runs, statistics of their difference, and what is written about it."""
