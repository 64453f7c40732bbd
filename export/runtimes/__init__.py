"""Convert ATen graphs to and from the files that ONNX Runtime and TorchScript run."""
