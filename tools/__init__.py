"""Programs beside the training; each runs from any folder as ``python tools/NAME.py``."""
