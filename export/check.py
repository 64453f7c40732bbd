"""Compare a bundle's written functions with PyTorch on fresh inputs."""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pyinv.errors import ExportError
from pyinv.priors import Normal, Prior, Uniform

from .capture.inputs import draw_conditions
from .capture.onnx_file import OnnxModule
from .capture.portable import portable
from .capture.trace import Shapes
from .derivatives.losses import Loss
from .diagnostics import first_line, quiet

__all__ = [
    "BATCHES",
    "EncoderReference",
    "NetworkReference",
    "Reference",
    "check_file",
    "check_function",
    "draw_latents",
    "onnx_function",
    "torchscript_function",
]

# A function of a bundle: from named inputs to named outputs.
Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]

BATCHES = (1, 3, 17)
# For functions whose cost per target is that of hundreds of images.
FEW_BATCHES = (1, 2)
_DIRECTIONS = 2
# The largest difference divided by the largest magnitude, for images, losses and gradients.
TOLERANCE = 1e-5
# By rounding, a latent close to a kink of the generator (a ReLU's zero) may fall on either side.
# This is rare, so a retry with fresh latents passes; an error in the graph fails every time.
_DRAWS = 3
# Where PyTorch's own float32 result differs from float64 by more than the tolerance, the tolerance
# grows with that difference. The factor leaves room for another order of summation.
_ROUNDING_ALLOWANCE = 4.0
# Images are also compared at draws times these factors, each relative to its own largest value: an
# epsilon that was lost, or an overflow, shows there only.
_FACTORS = (0.0, 1e-6, 10.0)
_TOLERANCE_FAR = 1e-3


def draw_latents(prior: Prior, count: int, size: int, *, random: torch.Generator) -> Tensor:
    """Draw latents [count, size] from a prior."""
    if isinstance(prior, Uniform):
        uniform = torch.rand(count, size, generator=random)
        return prior.low + (prior.high - prior.low) * uniform
    assert isinstance(prior, Normal)
    return prior.mean + prior.std * torch.randn(count, size, generator=random)


def directions(latent: Tensor) -> Tensor:
    """Return directions [B, n, d] in which grams are compared: random ones, and one component."""
    count, size = latent.shape
    random = torch.Generator().manual_seed(count)
    drawn = torch.randn(count, _DIRECTIONS, size, generator=random)
    one = torch.randint(size, (count,), generator=random)
    drawn[:, 0] = torch.nn.functional.one_hot(one, size)
    return drawn.to(latent.dtype)


class _LastActivation(TorchFunctionMode):
    """Record the last tanh or sigmoid that a generator computed, and its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.argument = self.result = torch.empty(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(resolve_name(func)).removesuffix(".default").rpartition(".")[2]
        if name in ("tanh", "sigmoid") and args and isinstance(result, Tensor):
            self.name, self.argument, self.result = name, args[0], result
        return result

    def gave(self, image: Tensor, value_range: tuple[float, float]) -> bool:
        """Whether the image is that activation's output, up to value range and shape."""
        if self.result.numel() != image.numel():
            return False
        low, high = value_range
        least = -1.0 if self.name == "tanh" else 0.0
        scale = (high - low) / (1.0 - least)
        result = self.result.detach().reshape(image.shape)
        if (least, 1.0) != (low, high):
            result = low + (result - least) * scale
        return torch.allclose(result, image.detach(), rtol=0.0, atol=1e-6 * (high - low))


class Reference:
    """Compute a prepared generator's images, losses and gradients in plain PyTorch.

    If targets are observations of images, ``observe`` makes them.
    """

    def __init__(
        self,
        generator: nn.Module,
        shapes: Shapes,
        *,
        prior: Prior,
        value_range: tuple[float, float],
        observe: nn.Module | None = None,
    ) -> None:
        self.generator = generator
        self.observe = observe
        self.shapes = shapes
        self.prior = prior
        self.value_range = value_range

    def draw(self, count: int, *, seed: int) -> dict[str, Tensor]:
        """Draw inputs: latents from the prior, targets in the value range, conditions and weights.

        About a quarter of the weights are 0.
        """
        random = torch.Generator().manual_seed(seed)
        low, high = self.value_range
        drawn = {
            "latent": draw_latents(self.prior, count, self.shapes.latent_size, random=random),
            "image": low + (high - low) * torch.rand(count, *self.shapes.target, generator=random),
        }
        if self.shapes.conditions:
            drawn["condition"] = draw_conditions(self.shapes.conditions, count, random=random)
        if self.shapes.weighted:
            drawn["weights"] = torch.rand(drawn["image"].shape, generator=random)
            drawn["weights"] *= torch.rand(drawn["image"].shape, generator=random) > 0.25
        return drawn

    def image(self, inputs: dict[str, Tensor]) -> Tensor:
        with portable():
            result: Tensor = self.generator(*self.arguments(inputs))
        return result

    def seen(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return what is compared with the targets: images, or their observations."""
        image = self.image(inputs)
        if self.observe is None:
            return image
        with portable():
            result: Tensor = self.observe(image)
        return result

    def arguments(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Return the generator's arguments: the latents [B, *latent_shape], and a condition."""
        latent = inputs["latent"].reshape(-1, *self.shapes.latent)
        return [latent, *([inputs["condition"]] if "condition" in inputs else [])]

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the images [B, *image_shape] of latents [B, d]."""
        with torch.no_grad():
            return {"image": self.image(inputs)}

    def objective(self, loss: Loss, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses [B] and the gradient [B, d] of their sum."""
        latent = inputs["latent"].detach().clone().requires_grad_(True)
        image, last = self._seen_and_activation({**inputs, "latent": latent})
        value_before = loss.value_before_activation.get(last.name)
        if value_before is not None and last.gave(image, self.value_range):
            value = value_before(last.argument.reshape(image.shape), inputs["image"])
        else:
            value = loss.value(image, inputs["image"])
        value = loss.mean(value, inputs.get("weights"))
        (gradient,) = torch.autograd.grad(value.sum(), latent)
        return {"loss": value.detach(), "gradient": gradient}

    def _seen_and_activation(self, inputs: dict[str, Tensor]) -> tuple[Tensor, _LastActivation]:
        with _LastActivation() as last:
            return self.seen(inputs), last

    def normal_equations(self, loss: Loss, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the objective's outputs and the gram's products with ``directions``, [B, n, d].

        A product is 2 / P J^T (J v). In a random direction v, it depends on all of the gram.
        """
        weights = inputs.get("weights")
        image, last = self._seen_and_activation(inputs)
        before = loss.residual_before_activation.get(last.name)
        if before is not None and not last.gave(image, self.value_range):
            before = None

        def residual(latent: Tensor) -> Tensor:
            image, last = self._seen_and_activation({**inputs, "latent": latent})
            if before is not None:
                found = before(last.argument.reshape(image.shape), inputs["image"])[0]
            else:
                assert loss.residual is not None
                found = loss.residual(image, inputs["image"])[0]
            return found if weights is None else found * weights.sqrt()

        latent = inputs["latent"].detach().clone().requires_grad_(True)
        value = residual(latent)
        # J v is the derivative of (J^T u) . v with respect to u.
        u = torch.zeros_like(value).requires_grad_(True)
        (pulled,) = torch.autograd.grad(value, latent, u, create_graph=True)
        scale = 2.0 / value[0].numel() if weights is None else 2.0 / weights.flatten(1).sum(1)
        products = []
        for direction in directions(latent).unbind(1):
            (pushed,) = torch.autograd.grad(pulled, u, direction, retain_graph=True)
            (product,) = torch.autograd.grad(value, latent, pushed, retain_graph=True)
            products.append((product.T * scale).T)
        return {**self.objective(loss, inputs), "gram": torch.stack(products, dim=1)}

    def double(self) -> Reference:
        """The same in float64."""
        generator, observe = copy.deepcopy((self.generator, self.observe))
        return Reference(
            generator.double(),
            self.shapes,
            prior=self.prior,
            value_range=self.value_range,
            observe=None if observe is None else observe.double(),
        )


class NetworkReference(ABC):
    """Compute what an encoder or an observation makes of images, in plain PyTorch."""

    def __init__(
        self, network: nn.Module, shapes: Shapes, value_range: tuple[float, float]
    ) -> None:
        self.network = network
        self.shapes = shapes
        self.value_range = value_range

    @abstractmethod
    def draw(self, count: int, *, seed: int) -> dict[str, Tensor]:
        """Draw inputs."""

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the network's output, by name."""

    def images(self, shape: tuple[int, ...], count: int, random: torch.Generator) -> Tensor:
        """Draw rough and smooth images in the value range."""
        low, high = self.value_range
        rough = torch.rand(count, *shape, generator=random)
        # An encoder averages noise out, so noise alone would hide errors that uniform images show.
        each = (count, *(1 for _ in shape))
        smooth = torch.rand(each, generator=random)
        share = torch.rand(each, generator=random)
        return low + (high - low) * (share * rough + (1 - share) * smooth)

    def double(self) -> NetworkReference:
        """The same in float64."""
        network = copy.deepcopy(self.network).double()
        return type(self)(network, self.shapes, self.value_range)


class EncoderReference(NetworkReference):
    """Compute a prepared encoder's latents in plain PyTorch."""

    def draw(self, count: int, *, seed: int) -> dict[str, Tensor]:
        """Draw rough and smooth targets in the value range, and conditions."""
        random = torch.Generator().manual_seed(seed)
        drawn = {"image": self.images(self.shapes.target, count, random)}
        if self.shapes.conditions:
            drawn["condition"] = draw_conditions(self.shapes.conditions, count, random=random)
        return drawn

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the latents [B, d] of targets [B, *target_shape]."""
        with torch.no_grad(), portable():
            return {"latent": self.network(*inputs.values()).flatten(1)}


def onnx_function(path: Path) -> Run:
    """Return a bundle's function, run by ONNX Runtime.

    Raises:
        ExportError: ONNX Runtime cannot load the file or, later, run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Errors are raised as well.
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # an arena reserves more memory than it uses
    # PyTorch runs between calls; threads that spin for more work would take its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    name = path.name
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load {name}: {first_line(error)}") from error
    input_names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        feed = {key: value.numpy() for key, value in inputs.items() if key in input_names}
        if len(feed) != len(input_names):
            raise ExportError(f"{name} has inputs {input_names}, expected {sorted(inputs)}")
        try:
            results = session.run(outputs, feed)
        except Exception as error:
            count = len(next(iter(inputs.values())))
            raise ExportError(
                f"{name} fails in ONNX Runtime at batch {count}: {first_line(error)}"
            ) from error
        return {key: torch.from_numpy(value) for key, value in zip(outputs, results, strict=True)}

    return run


def check_file(module: OnnxModule, inputs: Sequence[Tensor]) -> None:
    """Compare a module read from an ONNX file with what ONNX Runtime computes from that file.

    Args:
        module: the module, in eval mode.
        inputs: a batch of each of its inputs.

    Raises:
        ExportError: the results differ, or ONNX Runtime cannot run the file.
    """
    run = onnx_function(module.path)

    def computed(rows: slice) -> Tensor:
        named = zip(module.input_names, module.as_declared(inputs), strict=True)
        (result,) = run({name: value[rows].contiguous() for name, value in named}).values()
        return module.as_images(result)

    whole = None
    if not module.batch_of_one:
        # Where this fails, the file is written for a batch of one, although it does not say so.
        with contextlib.suppress(ExportError):
            whole = computed(slice(None))
    if whole is None:
        whole = torch.cat([computed(slice(i, i + 1)) for i in range(len(inputs[0]))])
    with torch.no_grad(), portable():
        read = module(*inputs)
    if whole.shape != read.shape or not torch.allclose(whole, read, rtol=1e-4, atol=1e-5):
        other = "export the torch.nn.Module that it was made from"
        if module.batch_of_one:
            other = "it is written for a batch of one; write it with a dynamic batch axis"
        raise ExportError(f"{module.path} computes something else than its graph says: {other}")


def torchscript_function(path: Path, method: str) -> Run:
    """Return a bundle's function, run by TorchScript, with and without ``out`` if it takes one.

    Raises:
        ExportError: TorchScript cannot load the file or, later, run it, or the results with and
            without ``out`` differ.
    """
    name = f"{path.name}: {method}"
    try:
        with quiet():
            called = getattr(torch.jit.load(str(path)), method)
    except Exception as error:
        raise ExportError(f"TorchScript cannot load {name}: {first_line(error)}") from error

    def call(inputs: dict[str, Tensor], *out: Sequence[Tensor]) -> Any:
        try:
            # Optimising the graph for each batch size takes longer than running it.
            with quiet(), torch.no_grad(), torch.jit.optimized_execution(False):
                return called(*inputs.values(), *out)
        except Exception as error:
            count = len(next(iter(inputs.values())))
            raise ExportError(
                f"{name} fails in TorchScript at batch {count}: {first_line(error)}"
            ) from error

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if method == "forward":
            taken = ("latent", "condition")
            return {"image": call({key: x for key, x in inputs.items() if key in taken})}
        if method in ("encode", "observe"):
            return {"latent" if method == "encode" else "target": call(inputs)}
        results = call(inputs)
        out = tuple(torch.full_like(result, math.nan) for result in results)
        call(inputs, out)
        if max(map(_difference, out, results)) > TOLERANCE:
            raise ExportError(f"{name} returns different results with and without out")
        return dict(zip(("loss", "gradient", "gram"), results, strict=False))

    return run


def check_function(
    name: str,
    run: Run,
    reference: Reference | NetworkReference,
    function: str,
    loss: Loss | None,
) -> float:
    """Compare one function of a bundle with PyTorch and return the largest relative difference.

    Args:
        name: what to call the function in errors.
        run: runs the function; from onnx_function or torchscript_function.
        reference: the generator, encoder or observation, in PyTorch.
        function: "forward", "objective", "normal_equations", "encode" or "observe".
        loss: the function's loss; None for the functions that have none.

    Raises:
        ExportError: the function cannot be run, or its results differ; the message names the
            function and the largest difference.
    """

    def expected(of: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if loss is None:
            return dict(of.forward(inputs))
        if function == "objective":
            return dict(of.objective(loss, inputs))
        return dict(of.normal_equations(loss, inputs))

    worst = 0.0
    for batch in BATCHES if function != "normal_equations" else FEW_BATCHES:
        worst = max(worst, _agreement(name, batch, reference, expected, run))
    if function == "forward" and isinstance(reference, Reference):
        _check_far_from_the_prior(name, reference, run)
    return worst


def _check_far_from_the_prior(name: str, reference: Reference, run: Run) -> None:
    for draw in range(_DRAWS):
        inputs = reference.draw(len(_FACTORS), seed=draw)
        inputs["latent"] *= torch.tensor(_FACTORS)[:, None]
        right, got = reference.forward(inputs)["image"], run(inputs)["image"]
        errors = [
            _difference(got[row], right[row]) if bool(right[row].isfinite().all()) else 0.0
            for row in range(len(_FACTORS))
        ]
        if max(errors) <= _TOLERANCE_FAR:
            return
    with contextlib.suppress(Exception):
        exact = reference.double().forward({key: x.double() for key, x in inputs.items()})["image"]
        for row, error in enumerate(errors):
            rounding = _difference(right[row], exact[row])
            if error <= _ROUNDING_ALLOWANCE * rounding < math.inf:
                errors[row] = 0.0
    for factor, error in zip(_FACTORS, errors, strict=True):
        if not error <= _TOLERANCE_FAR:
            raise ExportError(
                f"{name} does not agree with PyTorch at latents of the prior times {factor:g}: "
                f"image is off by {error:.1e} of its largest value"
            )


def _agreement(
    name: str,
    batch: int,
    reference: Reference | NetworkReference,
    expected: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]],
    actual: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> float:
    errors: dict[str, float] = {}
    what = "the generator" if isinstance(reference, Reference) else "the encoder"
    for draw in range(_DRAWS):
        inputs = reference.draw(batch, seed=1000 * batch + draw)
        try:
            right = expected(reference, inputs)
        except Exception as error:
            # Batch statistics are undefined for a single value.
            if batch == 1 and "more than 1 value per channel" in str(error):
                return 0.0
            raise ExportError(
                f"{what} fails in PyTorch at batch {batch}: {first_line(error)}"
            ) from error
        got = actual(inputs)
        if "gram" in got:
            got["gram"] = directions(inputs["latent"]) @ got["gram"]
        errors = {key: _difference(got[key], right[key]) for key in right}
        if max(errors.values()) <= TOLERANCE:
            return max(errors.values())
    try:
        exact = expected(reference.double(), {key: x.double() for key, x in inputs.items()})
    except Exception:
        # A generator that only runs in float32 is compared with PyTorch's float32.
        exact = right
    errors = {key: min(errors[key], _difference(got[key], exact[key])) for key in right}
    for key, worst in errors.items():
        rounding = _difference(right[key], exact[key])
        allowed = TOLERANCE
        if math.isfinite(rounding):
            allowed = max(allowed, _ROUNDING_ALLOWANCE * rounding)
        if not worst <= allowed:
            raise ExportError(
                f"{name} does not agree with PyTorch at batch {batch}: {key} is off by {worst:.1e} "
                f"of its largest value, {allowed:.0e} is allowed"
            )
    return max(errors.values())


def _difference(got: Tensor, right: Tensor) -> float:
    if got.shape != right.shape or bool(torch.isfinite(got).ne(torch.isfinite(right)).any()):
        return float("inf")
    finite = torch.isfinite(right)
    if not bool(finite.any()):
        return 0.0
    difference = (got.double() - right.double())[finite].abs().max()
    largest = right[finite].abs().max().double()
    return float(difference / largest.clamp(min=float(np.finfo(np.float32).tiny)))
