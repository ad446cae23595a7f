"""Checkpoints in the forms that others take: ONNX graphs, and a folder for the Hub."""
