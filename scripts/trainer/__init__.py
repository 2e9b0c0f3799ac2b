"""The training: its loop, its state and the files that it writes."""
