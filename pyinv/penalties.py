"""Penalties: terms added to the loss that keep a latent probable under its prior.

A penalty affects the steps, but neither the reported loss nor the stopping criteria.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyinv._rule import Rule

__all__ = ["MomentPenalty", "Penalty", "PriorPenalty"]


@dataclass(frozen=True)
class MomentPenalty(Rule):
    r"""Pull the mean and standard deviation of the components towards the prior's.

    $$
    \gamma_\text{mean} (\mu - \hat\mu)^2 + \gamma_\text{std} (\sigma - \hat\sigma)^2
    $$

    where the hats denote statistics over all components of the targets in a batch, or over the
    components of one latent. The gradient in one component of a latent of size d is

    $$
    \frac{2 \gamma_\text{mean} (\hat\mu - \mu)}{d}
    + \frac{2 \gamma_\text{std} (\hat\sigma - \sigma) (z_i - \hat\mu)}{d \hat\sigma}
    $$

    Args:
        gamma_mean: weight of the mean, at least 0.
        gamma_std: weight of the standard deviation, at least 0.
        over: "batch" or "latent". With "batch", targets run in groups that start and end together,
            and results depend on which targets share a group.

    Source: Creswell & Bharath 2016, equation 5, with gamma 1 (section 5); over the batch, last
    paragraph of section 2.3.
    """

    gamma_mean: float = 1.0
    gamma_std: float = 1.0
    over: str = "batch"

    def __post_init__(self) -> None:
        self._number("gamma_mean", at_least=0.0)
        self._number("gamma_std", at_least=0.0)
        self._choice("over", ("batch", "latent"))


@dataclass(frozen=True)
class PriorPenalty(Rule):
    r"""Add the mean negative log density of the latent under a normal prior.

    $$
    w_k \frac{1}{d} \sum_i \frac{(z_i - \text{mean})^2}{2\,\text{std}^2}, \qquad
    w_k = \text{weight} \cdot (1 - k / \text{max_steps}) \text{ if annealed}
    \cdot \text{loss}(z_k) \text{ if relative}
    $$

    Args:
        weight: at least 0.
        anneal: decrease the weight to zero over the stage, so that the last steps minimise the loss
            alone.
        relative: multiply the weight by the loss at the latent that the step starts from (by 0 if
            it is negative), held constant during that step. The penalty then scales with the loss,
            whatever its unit: strong early on, and weak near an exact latent.
            ``LevenbergMarquardt`` and ``LBFGS`` use the weight and loss of the last accepted step.

    A relative penalty is stationary where $\nabla \log \text{loss}(z)$ and weight times the
    gradient of the mean above cancel: it minimises
    $\log \text{loss}(z) + \text{weight} \cdot \frac{1}{d} \sum_i (\dots)$.

    A uniform prior is treated as the normal prior with the same mean and standard deviation,
    $(\text{high} - \text{low}) / \sqrt{12}$: its own density has no gradient, and if the data
    constrain a latent only weakly, it would drift to the bounds. For a linear generator this gives
    the latent of least expected squared error among those linear in the image.

    Source: the term -log p(z) in the later public code of Creswell & Bharath (weight 0.01, not
    annealed; the paper has equation 5 instead). Annealing is ours; in Gauss-Newton steps, a pull to
    a fixed latent that fades from step to step is the iteratively regularised Gauss-Newton method
    of Bakushinskii 1992. Regularisation proportional to the residual: the damping of Yamashita &
    Fukushima 2001, which preserves quadratic convergence.
    """

    weight: float
    anneal: bool = False
    relative: bool = False

    def __post_init__(self) -> None:
        self._number("weight", at_least=0.0)
        self._flag("anneal")
        self._flag("relative")


Penalty = MomentPenalty | PriorPenalty
PENALTIES: tuple[type[MomentPenalty] | type[PriorPenalty], ...] = (MomentPenalty, PriorPenalty)
