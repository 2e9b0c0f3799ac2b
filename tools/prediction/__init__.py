"""The parts of ``tools/predict.py``: ``predicting`` runs the networks and evaluates, ``rows`` writes predictions."""
