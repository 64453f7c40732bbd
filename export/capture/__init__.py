"""From a PyTorch module, or a TorchScript file, to an ATen graph."""
