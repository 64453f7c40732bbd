"""Solvers, which step a latent, and learning-rate schedules for the first-order ones.

k counts the steps within a stage, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pyinv._rule import Rule

__all__ = [
    "LBFGS",
    "Adam",
    "Constant",
    "Cosine",
    "GradientDescent",
    "LevenbergMarquardt",
    "RMSprop",
    "Schedule",
    "Solver",
    "StepDecay",
]


@dataclass(frozen=True)
class Constant(Rule):
    r"""Constant learning rate.

    $$
    \eta_k = \eta
    $$
    """


@dataclass(frozen=True)
class StepDecay(Rule):
    r"""Multiply the learning rate by ``factor`` once every ``every`` steps.

    $$
    \eta_k = \eta \cdot \text{factor}^{\lfloor k / \text{every} \rfloor}
    $$

    Args:
        every: number of steps between changes, at least 1.
        factor: multiplier, above 0, at most 1.

    Source: the learning rate "attenuated over time" of Lipton & Tripathi 2017, section 2, whose
    code halves it every 50,000 steps.
    """

    every: int
    factor: float

    def __post_init__(self) -> None:
        self._count("every", at_least=1)
        self._number("factor", above=0.0, at_most=1.0, single=False)


@dataclass(frozen=True)
class Cosine(Rule):
    r"""Anneal the learning rate along half a cosine, down to ``final`` of it at ``max_steps``.

    $$
    \eta_k = \eta \left(\text{final} + (1 - \text{final})
    \frac{1 + \cos(\pi k / \text{max_steps})}{2}\right)
    $$

    Args:
        final: the fraction of the learning rate that is left at the end, 0 to 1.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, one period.
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        self._number("final", at_least=0.0, at_most=1.0, single=False)


class _Solver(Rule):
    """The base of all solvers."""

    needs_normal_equations: ClassVar[bool] = False
    """Whether the solver evaluates the loss's normal equations in addition to its objective."""
    needs_independent_targets: ClassVar[bool] = False
    """Whether no target's loss may depend on another target's latent."""


Schedule = Constant | StepDecay | Cosine
_SCHEDULES = (Constant, StepDecay, Cosine)


@dataclass(frozen=True)
class GradientDescent(_Solver):
    r"""Gradient descent with optional heavy-ball momentum.

    $$
    m \leftarrow \text{momentum} \cdot m + g, \qquad z \leftarrow z - \eta_k m
    $$

    Args:
        learning_rate: eta, above 0. Losses are means over pixels, so it does not depend on the
            image size.
        momentum: 0 to below 1.
        schedule: learning-rate schedule.

    Source: Lipton & Tripathi 2017, section 2 (momentum 0). Momentum as in torch.optim.SGD.
    """

    learning_rate: float
    momentum: float = 0.0
    schedule: Schedule = field(default=Constant())

    def __post_init__(self) -> None:
        self._number("learning_rate", above=0.0)
        self._number("momentum", at_least=0.0, below=1.0)
        self._instance("schedule", _SCHEDULES)


@dataclass(frozen=True)
class Adam(_Solver):
    r"""Adam: steps scaled by running means of the gradient and its square.

    $$
    \begin{aligned}
    m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
    v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
    z &\leftarrow z - \frac{\eta_k}{1 - \beta_1^{k+1}}
    \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^{k+1}} + \epsilon}
    \end{aligned}
    $$

    When a constraint resamples a component, its moments are reset to zero and its k restarts at 0.
    (With the stage's k, its next steps would be up to 6.5 times the learning rate.)
    ``Stage(reset_moments=False)`` disables both.

    Args:
        learning_rate: eta, above 0. About the distance that a component moves in one step.
        beta1: decay rate of the mean gradient, 0 to below 1.
        beta2: decay rate of the mean squared gradient, 0 to below 1.
        epsilon: above 0.
        schedule: learning-rate schedule.

    Source: Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    schedule: Schedule = field(default=Constant())

    def __post_init__(self) -> None:
        self._number("learning_rate", above=0.0)
        self._number("beta1", at_least=0.0, below=1.0)
        self._number("beta2", at_least=0.0, below=1.0)
        self._number("epsilon", above=0.0)
        self._instance("schedule", _SCHEDULES)


@dataclass(frozen=True)
class RMSprop(_Solver):
    r"""RMSprop: steps scaled by a running mean of the squared gradient.

    $$
    \begin{aligned}
    v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
    m &\leftarrow \text{momentum} \cdot m + \frac{g}{\sqrt{v} + \epsilon} \\
    z &\leftarrow z - \eta_k m
    \end{aligned}
    $$

    v and m start every stage at 0, and there is no bias correction: the first step is up to
    $1 / \sqrt{1 - \alpha}$ times the learning rate. When a constraint resamples a component,
    its v and m are reset to 0, unless ``Stage(reset_moments=False)`` is set.

    Args:
        learning_rate: eta, above 0.
        alpha: decay rate of the mean squared gradient, 0 to below 1.
        epsilon: above 0.
        momentum: 0 to below 1.
        schedule: learning-rate schedule.

    Source: Tieleman & Hinton 2012, "Neural networks for machine learning", lecture 6.5. Form and
    defaults as in torch.optim.RMSprop, not centered.
    """

    learning_rate: float = 0.01
    alpha: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0
    schedule: Schedule = field(default=Constant())

    def __post_init__(self) -> None:
        self._number("learning_rate", above=0.0)
        self._number("alpha", at_least=0.0, below=1.0)
        self._number("epsilon", above=0.0)
        self._number("momentum", at_least=0.0, below=1.0)
        self._instance("schedule", _SCHEDULES)


@dataclass(frozen=True)
class LevenbergMarquardt(_Solver):
    r"""Levenberg-Marquardt: few, damped Gauss-Newton steps from the residual's full Jacobian.

    The loss is a mean of squared residuals r over P pixels. With J the residual's Jacobian at the
    latent z, $g = \frac{2}{P} J^T r$ and $H = \frac{2}{P} J^T J$, a step solves

    $$
    (H + c I + \lambda m I)\, \delta = -(g + c (z - \text{mean})), \qquad
    m = \frac{1}{d} \sum_i H_{ii}
    $$

    where c is the curvature of a ``PriorPenalty`` (0 without one). With
    $\varphi(z) = \text{loss} + \frac{c}{2} \lVert z - \text{mean} \rVert^2$, the gain is the
    ratio of the actual decrease of $\varphi$ to the one predicted by the quadratic model,

    $$
    \text{gain} = \frac{\varphi(z) - \varphi(z + \delta)}
    {-(g + c (z - \text{mean})) \cdot \delta - \frac{1}{2} \delta \cdot (H + c I) \delta}
    $$

    The step is accepted if $\varphi$ decreases and the gain is above 0.001. Then
    $\lambda$ is multiplied by ``down`` if the gain is above 0.75, or by 2 if it is below
    0.25. A rejected step multiplies it by ``up``, and the next step uses the same g and H.
    $\lambda$ stays between 1e-8 and 1e8. It starts every stage at ``damping``.

    Under ``Clip``, a component at a bound whose gradient points outwards is excluded from the
    system. The step is clipped before it is evaluated, and so is the latent at the start of a
    stage. Other constraints act on the stepped latent as after any step.

    Every step, accepted or rejected, counts and takes one evaluation of the loss. The normal
    equations (g and H) are evaluated at the start of a stage and after each accepted step. The
    stopping criteria consider only accepted steps. A stage also ends if $\lambda$ is above
    1e5 after a rejected step, or if no $\lambda$ makes the matrix positive definite. A step
    to a latent with a non-finite loss is rejected.

    The bundle must contain the loss's normal equations (``pyinv.export`` writes them for "mse" and
    "whitened"). Targets must not affect one another: no ``MomentPenalty``, no batch norm over the
    batch.

    Args:
        damping: lambda at the start of a stage, relative to the mean curvature m; above 0.
        up: factor for lambda after a rejected step, above 1.
        down: factor for lambda after a step with a gain above 0.75, above 0 and below 1.

    Source: Levenberg 1944 (the damping, $\lambda I$); Marquardt 1963 (raised after a failure,
    lowered after a success). Acceptance by the gain, and its thresholds 1/4 and 3/4: Moré 1978,
    for a trust region's radius; for the damping: Nielsen 1999, who scales the first one by the
    largest element of the diagonal. Scaling every one by the mean, and the numbers, are ours:
    chosen on 32 images of each of two 100-dimensional generators.
    """

    needs_normal_equations: ClassVar[bool] = True
    needs_independent_targets: ClassVar[bool] = True

    damping: float = 1e-3
    up: float = 4.0
    down: float = 0.25

    def __post_init__(self) -> None:
        self._number("damping", above=0.0, single=False)
        self._number("up", above=1.0, single=False)
        self._number("down", above=0.0, below=1.0, single=False)


@dataclass(frozen=True)
class LBFGS(_Solver):
    r"""L-BFGS: quasi-Newton steps with curvature from recent gradients, for latents of any size.

    With $\varphi(z) = \text{loss} + \frac{c}{2} \lVert z - \text{mean} \rVert^2$, c the
    curvature of a ``PriorPenalty`` (0 without one) and g the gradient of $\varphi$, a step is

    $$
    z' = z - t H g
    $$

    H approximates the inverse Hessian from the last ``history`` pairs of a step s and the resulting
    change y of g, starting from $\frac{s \cdot y}{y \cdot P y} P$ of the newest pair. P is the
    bundle's preconditioner, or the identity. Without any pairs, the step is along -P g and
    ``first_step`` standard deviations of the prior long. t starts at 1. The step is accepted if the
    gradient at z' is finite and

    $$
    \varphi(z') \le \varphi(z) + 10^{-4}\, g \cdot (z' - z), \qquad
    \varphi(z') < \varphi(z)
    $$

    Otherwise t is multiplied by 0.3, at most 11 times in a row. After that, or when -H g is not a
    descent direction, all pairs are discarded. A step adds a pair if
    $s \cdot y > 10^{-10}\, y \cdot y$, with the c of that step.

    Under ``Clip``, a component at a bound whose gradient points outwards is excluded from g and
    from the step. The step is clipped before it is evaluated. Other constraints act on the stepped
    latent as after any step.

    Every step, accepted or rejected, counts and takes one evaluation of loss and gradient. The
    stopping criteria consider only accepted steps. A stage also ends after 12 rejected steps
    without any pairs, or if there is no descent direction.

    The memory is 2 ``history`` numbers per component of each latent in the batch. Targets must not
    affect one another: no ``MomentPenalty``, no batch norm over the batch. Where both can be used,
    ``LevenbergMarquardt`` is faster.

    Args:
        history: maximum number of pairs, 1 to 1000.
        first_step: length of the first step in standard deviations of the prior, above 0.
        preconditioned: start H from the bundle's preconditioner, if it has one, instead of I.

    Source: Nocedal 1980; Liu & Nocedal 1989; the product H g is algorithm 7.4 of Nocedal & Wright
    2006, the sufficient decrease their algorithm 3.1. Components at bounds: Bertsekas 1982. The
    numbers are ours.
    """

    needs_independent_targets: ClassVar[bool] = True

    history: int = 20
    first_step: float = 0.3
    preconditioned: bool = True

    def __post_init__(self) -> None:
        self._flag("preconditioned")
        self._count("history", at_least=1, at_most=1000)
        self._number("first_step", above=0.0)


Solver = GradientDescent | Adam | LevenbergMarquardt | LBFGS | RMSprop
SOLVERS: tuple[type[Solver], ...] = (GradientDescent, Adam, LevenbergMarquardt, LBFGS, RMSprop)
