"""Parts of ``tools/export.py``: conversion of a trained model to a file that runs without this program, and its card."""
