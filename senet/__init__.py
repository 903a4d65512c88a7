"""What the training scripts share and nobody edits for an experiment."""
