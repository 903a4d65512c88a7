"""Keeping a run: its folder, checkpoints, signals, logs, TensorBoard, devices and workers."""
