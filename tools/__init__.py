"""Maintenance programs, each started as ``python tools/NAME.py``."""
