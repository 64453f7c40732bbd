"""From an ATen graph to the files that ONNX Runtime and TorchScript run, and back."""
