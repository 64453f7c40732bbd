"""Capture a PyTorch module, or a TorchScript file, as an ATen graph."""
