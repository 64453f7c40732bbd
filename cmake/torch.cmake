# Builds the TorchScript runtime where CMake finds torch.
