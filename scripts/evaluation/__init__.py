"""From the best weights and the test split to figures, and from figures to files."""
