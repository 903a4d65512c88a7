"""The machinery that makes a training step run: devices, memory, convolutions, files, signals."""
