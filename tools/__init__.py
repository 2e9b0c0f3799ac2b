"""Programs beside the training itself; each runs from any folder as ``python tools/NAME.py``."""
