"""The same algorithm in PyTorch, which the engine's speed is compared with.

``recover`` is ``pyinv.LevenbergMarquardt`` with its stop rules, for many targets at a time:
finished lanes are refilled with the next targets. A peer computes the normal equations:
``Tangents`` pushes all directions through the layers itself, ``VmapJvp`` uses torch.func.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pyinv.constraints import Clip, NoConstraint
from pyinv.penalties import PriorPenalty
from pyinv.priors import Prior
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import LevenbergMarquardt

__all__ = ["Peer", "Recovered", "Tangents", "VmapJvp", "recover", "whitened"]

Evaluation = tuple[Tensor, Tensor, Tensor]

# The engine's constants: see the docs of pyinv.LevenbergMarquardt.
LEAST_DAMPING, MOST_DAMPING, HOPELESS_DAMPING = 1e-8, 1e8, 1e5
LEAST_GAIN, LOW_GAIN, HIGH_GAIN = 1e-3, 0.25, 0.75
MOST_RAISES = 30

EXPONENT = 0.25
SATURATION = 1e-4


def fold(generator: nn.Module, latent_size: int) -> list[nn.Module]:
    """Return a generator's layers before its final tanh, with batch norm inside the convolutions.

    Raises:
        ValueError: there are layers other than convolutions, batch norm, ReLU and a final tanh, or
            they are not called in sequence.
    """
    folded: list[nn.Module] = []
    for layer in generator.modules():
        if list(layer.children()):
            continue
        if isinstance(layer, nn.BatchNorm2d):
            transposed = isinstance(folded[-1], nn.ConvTranspose2d)
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer, transpose=transposed)
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            folded.append(copy.deepcopy(layer))
        elif isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
            folded.append(nn.LeakyReLU(getattr(layer, "negative_slope", 0.0)))
        elif not isinstance(layer, (nn.Tanh, nn.Unflatten)):  # latents come as [B, d, 1, 1]
            raise ValueError(f"the PyTorch peer does not support {type(layer).__name__}")
    with torch.no_grad():
        probe = torch.randn(4, latent_size, generator=torch.Generator().manual_seed(0))
        image = probe[..., None, None]
        for layer in folded:
            image = layer(image)
        if not torch.allclose(image.tanh(), generator(probe), atol=1e-4):
            raise ValueError("the PyTorch peer does not compute what the generator does")
    return folded


def whitened(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights and the targets before tanh of the whitened residual, [N, C, H, W]."""
    unsaturated = 1 - images.abs() >= SATURATION
    weights = torch.where(unsaturated, (1 - images**2).clamp(min=0) ** EXPONENT, 0.0)
    return weights, torch.where(unsaturated, images, 0.0).atanh()


class Peer(ABC):
    """Compute the loss and normal equations of a folded generator's whitened residual.

    Args:
        generator: in eval mode.
        latent_size: the number of latent components.
        channels_last: the memory layout of weights, images and tangents.
        at_a_time: the number of targets whose tangents are computed at a time.
    """

    def __init__(
        self,
        generator: nn.Module,
        latent_size: int,
        *,
        channels_last: bool = False,
        at_a_time: int = 16,
    ) -> None:
        self.size = latent_size
        self.at_a_time = at_a_time
        self.channels_last = channels_last
        self._layers = nn.Sequential(*fold(generator, latent_size)).requires_grad_(False)
        if channels_last:
            self._layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def flatten(self, images: Tensor) -> Tensor:
        """Return [N, C, H, W] as [N, P], in the order that needs no copy."""
        if self.channels_last:
            images = images.permute(0, 2, 3, 1)
        return images.flatten(1)

    def loss(self, latents: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """Return the loss [B] at latents [B, d]; weights and targets [B, P]."""
        residual = weights * (self._forward(latents) - targets)
        return residual.square().mean(dim=1)

    def normal_equations(self, latents: Tensor, weights: Tensor, targets: Tensor) -> Evaluation:
        """Return loss [B], gradient [B, d] and gram [B, d, d] of the loss."""
        parts = []
        for rows in torch.arange(len(latents)).split(self.at_a_time):
            output, jacobian = self._jacobian(latents[rows])
            weight = weights[rows]
            residual = weight * (output - targets[rows])
            jacobian = jacobian.mul_(weight[:, None])
            gradient = (jacobian @ residual[..., None])[..., 0]
            gram = jacobian @ jacobian.mT
            scale = 2 / residual.shape[1]
            parts.append((residual.square().mean(dim=1), gradient.mul_(scale), gram.mul_(scale)))
        return tuple(map(torch.cat, zip(*parts, strict=True)))  # type: ignore[return-value]

    def _forward(self, latents: Tensor) -> Tensor:
        return self.flatten(self._layers(latents[..., None, None]))

    @abstractmethod
    def _jacobian(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output [B, P] and its derivatives [B, d, P]."""


class Tangents(Peer):
    """Push the tangents of all directions through the layers, as images of one large batch."""

    def _jacobian(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        batch, size = latents.shape
        image = latents[..., None, None]
        # Before the first activation the tangents do not depend on the latent.
        tangent = torch.eye(size)[..., None, None]
        shared = True
        for layer in self._layers:
            if isinstance(layer, nn.LeakyReLU):
                slope = torch.where(image > 0, 1.0, layer.negative_slope)
                image = image * slope
                if shared:
                    tangent = (tangent[None] * slope[:, None]).flatten(0, 1)
                    if self.channels_last:
                        tangent = tangent.contiguous(memory_format=torch.channels_last)
                    shared = False
                else:
                    tangent.unflatten(0, (batch, size)).mul_(slope[:, None])
            else:
                image, tangent = layer(image), _without_bias(layer, tangent)
        jacobian = self.flatten(tangent)
        if shared:
            jacobian = jacobian.repeat(batch, 1)
        return self.flatten(image), jacobian.unflatten(0, (batch, size))


class VmapJvp(Peer):
    """Compute tangents with torch.func: vmap over directions of a jvp of the batch."""

    def _jacobian(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            tangents = direction.expand_as(latents)
            return torch.func.jvp(self._forward, (latents,), (tangents,))

        push = torch.func.vmap(along, out_dims=(0, 1))
        output, jacobian = push(torch.eye(latents.shape[1]))
        return output[0], jacobian.contiguous()


def _without_bias(layer: nn.Module, tangent: Tensor) -> Tensor:
    if isinstance(layer, nn.ConvTranspose2d):
        return nn.functional.conv_transpose2d(
            tangent,
            layer.weight,
            None,
            layer.stride,
            layer.padding,
            layer.output_padding,
            layer.groups,
            layer.dilation,
        )
    assert isinstance(layer, nn.Conv2d)
    return nn.functional.conv2d(
        tangent, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
    )


@dataclass(frozen=True)
class Recovered:
    """The result of ``recover``: latents [N, d], losses [N], and the cost of each target."""

    latents: Tensor
    loss: Tensor
    updates: Tensor
    normal_equations: Tensor


@torch.no_grad()
def recover(
    peer: Peer, images: Tensor, initial: Tensor, recipe: Recipe, prior: Prior, *, lanes: int
) -> Recovered:
    """Recover the latents of images: one attempt of a recipe with one Levenberg-Marquardt stage.

    Args:
        peer: computes the losses and normal equations.
        images: the targets, [N, C, H, W].
        initial: the first latents, [N, d].
        recipe: a recipe for the loss whitened.
        prior: the bundle's prior.
        lanes: the number of targets at a time.

    Raises:
        ValueError: the recipe is not supported.
    """
    stage, penalty = _read(recipe)
    solver = stage.solver
    assert isinstance(solver, LevenbergMarquardt)
    weights, targets = map(peer.flatten, whitened(images))
    count, size = initial.shape
    z = initial.clone()
    loss = torch.zeros(count, dtype=torch.float64)
    gradient = torch.zeros(count, size, dtype=torch.float64)
    gram = torch.zeros(count, size, size, dtype=torch.float64)
    damping = torch.full((count,), solver.damping, dtype=torch.float64)
    curvature = torch.zeros(count, dtype=torch.float64)
    updates, still, evaluated = (torch.zeros(count, dtype=torch.long) for _ in range(3))
    mean = prior.mean
    tolerance = stage.loss_tolerance

    def evaluate(rows: Tensor) -> Tensor:
        """Evaluate the normal equations at these targets' latents; return the losses."""
        found = peer.normal_equations(z[rows], weights[rows], targets[rows])
        gradient[rows], gram[rows] = found[1].double(), found[2].double()
        evaluated[rows] += 1
        return found[0].double()

    def pull(rows: Tensor) -> None:
        """Fix the penalty's curvature at an accepted point."""
        if penalty is None:
            return
        weight = torch.full((len(rows),), penalty.weight, dtype=torch.float64)
        if penalty.anneal:
            weight *= 1 - updates[rows] / stage.max_steps
        if penalty.relative:
            weight *= loss[rows]
        curvature[rows] = weight / (prior.std**2 * size)

    active = torch.arange(0)
    waiting = 0
    while len(active) or waiting < count:
        fresh = torch.arange(waiting, min(waiting + lanes - len(active), count))
        if len(fresh):
            waiting += len(fresh)
            loss[fresh] = evaluate(fresh)
            pull(fresh)
            active = torch.cat([active, fresh[loss[fresh] > tolerance]])
            if not len(active):
                continue
        point = z[active].double()
        c = curvature[active]
        slope = gradient[active] + c[:, None] * (point - mean)
        step, hopeless = _solve(gram[active], c, damping, active, slope, point, stage, solver.up)
        moved = (point + step).float()
        if isinstance(stage.constraint, Clip):
            moved = moved.clamp(stage.constraint.low, stage.constraint.high)
        step = moved.double() - point
        curved = (gram[active] @ step[..., None])[..., 0] + c[:, None] * step
        predicted = -(slope * step).sum(dim=1) - 0.5 * (step * curved).sum(dim=1)
        trial = peer.loss(moved, weights[active], targets[active]).double()
        fall = (loss[active] - trial) + 0.5 * c * (
            (point - mean).square().sum(dim=1) - (moved.double() - mean).square().sum(dim=1)
        )
        taken = trial.isfinite() & (fall > 0) & (fall > LEAST_GAIN * predicted) & ~hopeless
        factor = torch.where(fall < LOW_GAIN * predicted, 2.0, 1.0)
        factor = torch.where(fall > HIGH_GAIN * predicted, solver.down, factor)
        factor = torch.where(taken, factor, solver.up)
        damping[active] = (damping[active] * factor).clamp(LEAST_DAMPING, MOST_DAMPING)
        updates[active] += ~hopeless
        done = hopeless | (updates[active] >= stage.max_steps)
        done |= ~taken & (damping[active] > HOPELESS_DAMPING)

        accepted = active[taken]
        before, now = loss[accepted], trial[taken]
        z[accepted], loss[accepted] = moved[taken], now
        change = (before - now).abs()
        at_rest = change <= stage.relative_change_tolerance * before
        if stage.change_tolerance:
            at_rest |= change <= stage.change_tolerance
        still[accepted] = torch.where(at_rest, still[accepted] + 1, 0)
        done[taken] |= (now <= tolerance) | (still[accepted] >= stage.patience)
        again = active[taken & ~done]
        if len(again):
            pull(again)
            evaluate(again)
        active = active[~done]
    return Recovered(z, loss, updates, evaluated)


def _solve(
    gram: Tensor,
    curvature: Tensor,
    damping: Tensor,
    active: Tensor,
    slope: Tensor,
    point: Tensor,
    stage: Stage,
    up: float,
) -> tuple[Tensor, Tensor]:
    """Return the damped steps [B, d], and the lanes without a solution; increases ``damping``."""
    scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    scale = torch.where(scale > 0, scale, 1.0)
    right = -slope
    fixed = None
    if isinstance(stage.constraint, Clip):
        low, high = stage.constraint.low, stage.constraint.high
        fixed = ((point <= low) & (right < 0)) | ((point >= high) & (right > 0))
        right = right.masked_fill(fixed, 0.0)
    step = torch.zeros_like(right)
    left = torch.arange(len(active))
    for _ in range(MOST_RAISES + 1):
        system = gram[left].clone()
        shift = curvature[left] + damping[active[left]] * scale[left]
        if fixed is not None:
            free = ~fixed[left]
            system *= free[:, :, None] & free[:, None, :]
            system.diagonal(dim1=1, dim2=2).add_(torch.where(free, shift[:, None], 1.0))
        else:
            system.diagonal(dim1=1, dim2=2).add_(shift[:, None])
        factors, failed = torch.linalg.cholesky_ex(system)
        solved = torch.cholesky_solve(right[left, :, None], factors)[..., 0]
        good = (failed == 0) & solved.isfinite().all(dim=1)
        step[left[good]] = solved[good]
        left = left[~good]
        if not len(left):
            break
        damping[active[left]] *= up
    hopeless = torch.zeros(len(active), dtype=torch.bool)
    hopeless[left] = True
    return step, hopeless


def _read(recipe: Recipe) -> tuple[Stage, PriorPenalty | None]:
    """Return a fitted recipe's stage and penalty; raise ValueError if it is not supported."""
    stage = recipe.stages[0]
    if (
        len(recipe.stages) > 1
        or not isinstance(stage.solver, LevenbergMarquardt)
        or stage.loss != "whitened"
        or not isinstance(stage.constraint, (Clip, NoConstraint))
        or any(not isinstance(penalty, PriorPenalty) for penalty in stage.penalties)
    ):
        raise ValueError(
            "the PyTorch peer has one stage of LevenbergMarquardt on the loss whitened, with Clip "
            f"or no constraint, and PriorPenalty or no penalty; got {recipe}"
        )
    penalty = stage.penalties[0] if stage.penalties else None
    assert penalty is None or isinstance(penalty, PriorPenalty)
    return stage, penalty
