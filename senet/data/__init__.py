"""Data sets: CIFAR, drawn shapes, image folders; batches and their order; the inputs of a graph."""
