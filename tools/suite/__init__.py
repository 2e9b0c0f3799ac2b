"""The parts of ``tools/benchmark_suite.py``: its cells, their processes, and the tables of their results."""
