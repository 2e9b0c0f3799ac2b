"""Parts of ``tools/export.py``: the conversion to files that run without this program, their check, their card."""
