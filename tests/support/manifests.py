"""Manifests without bundles, with enough content to choose a recipe."""

from __future__ import annotations

from pyinv.bundle import FileRecord, Function, Manifest
from pyinv.priors import Normal


def manifest(prior=None, solved=("mse", "whitened"), losses=(), latent_shape=(10,)):
    """A manifest with P = 48; ``solved``: the losses that have normal equations."""
    operators = {"operators": ("Gemm", "Sub"), "input_operators": ("Gemm",)}
    functions = [Function("forward", "onnx", "forward.onnx")]
    functions += [
        Function("objective", "onnx", f"objective_{loss}.onnx", loss, **operators)
        for loss in dict.fromkeys(["mse", *solved, *losses])
    ]
    functions += [
        Function("normal_equations", "onnx", f"{loss}.onnx", loss, bytes_per_target=1, **operators)
        for loss in solved
    ]
    return Manifest(
        latent_shape=latent_shape,
        image_shape=(3, 4, 4),
        value_range=(-1.0, 1.0),
        prior=prior or Normal(),
        functions=tuple(functions),
        files={function.file: FileRecord(1, "0" * 64) for function in functions},
    )
