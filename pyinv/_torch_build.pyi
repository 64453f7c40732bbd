"""Written by the build: the torch that the TorchScript runtime was built with."""

VERSION: str
