"""Runs of W&B and TensorBoard, brought into run folders."""
