"""From a network and two splits to the best weights: the training loop."""
