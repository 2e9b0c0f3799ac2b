"""From a backbone's name to a network with the weights that were asked for."""
