"""Programs beside the training, each with its commands at the top of its file."""
