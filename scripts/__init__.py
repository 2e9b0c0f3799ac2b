"""The MedMNIST training pipeline: core, data_handler, models, trainer, evaluation."""
