"""The machinery of a run: folder, checkpoints, signals, logs, TensorBoard, devices, workers."""
