"""Solvers: how a latent moves; and schedules: how a first-order solver's learning rate changes.

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
    r"""Keep the learning rate.

    $$
    \eta_k = \eta
    $$
    """


@dataclass(frozen=True)
class StepDecay(Rule):
    r"""Multiply the learning rate by ``factor`` every ``every`` steps.

    $$
    \eta_k = \eta \cdot \text{factor}^{\lfloor k / \text{every} \rfloor}
    $$

    Args:
        every: steps between two changes, at least 1.
        factor: above 0, at most 1.

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
    r"""Lower the learning rate along half a cosine, down to ``final`` of it at ``max_steps``.

    $$
    \eta_k = \eta \left(\text{final} + (1 - \text{final})
    \frac{1 + \cos(\pi k / \text{max_steps})}{2}\right)
    $$

    Args:
        final: the share of the learning rate that is left at the end, 0 to 1.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, one period.
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        self._number("final", at_least=0.0, at_most=1.0, single=False)


class _Solver(Rule):
    """What a recipe has to know of its solvers."""

    needs_normal_equations: ClassVar[bool] = False
    """Whether the loss's normal equations are evaluated, and not its objective alone."""
    needs_independent_targets: ClassVar[bool] = False
    """Whether each target has to be on its own: no target's loss may depend on another's latent."""


Schedule = Constant | StepDecay | Cosine
_SCHEDULES = (Constant, StepDecay, Cosine)


@dataclass(frozen=True)
class GradientDescent(_Solver):
    r"""Gradient descent, with heavy-ball momentum if asked for.

    $$
    m \leftarrow \text{momentum} \cdot m + g, \qquad z \leftarrow z - \eta_k m
    $$

    Args:
        learning_rate: eta, above 0. Losses are means over pixels, so it does not depend on the
            image's size.
        momentum: 0 to below 1.
        schedule: how eta changes.

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
    r"""Adam: steps scaled by running means of the gradient and of its square.

    $$
    \begin{aligned}
    m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
    v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
    z &\leftarrow z - \frac{\eta_k}{1 - \beta_1^{k+1}}
    \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^{k+1}} + \epsilon}
    \end{aligned}
    $$

    A component that a constraint draws anew starts afresh: its moments are zero, and its k counts
    its own steps. (With the stage's k, its next steps would be up to 6.5 times the learning
    rate.) ``Stage(reset_moments=False)`` switches both off.

    Args:
        learning_rate: eta, above 0. About the distance that a component moves in one step.
        beta1: decay of the gradient's mean, 0 to below 1.
        beta2: decay of the squared gradient's mean, 0 to below 1.
        epsilon: above 0.
        schedule: how eta changes.

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
    r"""RMSprop: steps scaled by a running mean of the gradient's square.

    $$
    \begin{aligned}
    v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
    m &\leftarrow \text{momentum} \cdot m + \frac{g}{\sqrt{v} + \epsilon} \\
    z &\leftarrow z - \eta_k m
    \end{aligned}
    $$

    v and m begin every stage at 0, and there is no bias correction: the first step is up to
    $1 / \sqrt{1 - \alpha}$ times the learning rate. They begin at 0 again for a component
    that a constraint resamples, unless ``Stage(reset_moments=False)``.

    Args:
        learning_rate: eta, above 0.
        alpha: decay of the squared gradient's mean, 0 to below 1.
        epsilon: above 0.
        momentum: 0 to below 1.
        schedule: how eta changes.

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
    r"""Damped Gauss-Newton steps: few, each from the residual's whole Jacobian.

    For a loss that is a mean of squared residuals r over P pixels, with J the residual's Jacobian
    at the latent z, $g = \frac{2}{P} J^T r$ and $H = \frac{2}{P} J^T J$, a step solves

    $$
    (H + c I + \lambda m I)\, \delta = -(g + c (z - \text{mean})), \qquad
    m = \frac{1}{d} \sum_i H_{ii}
    $$

    where c is the curvature of a ``PriorPenalty`` (0 without one). With
    $\varphi(z) = \text{loss} + \frac{c}{2} \lVert z - \text{mean} \rVert^2$, the gain is what
    $\varphi$ fell by over the fall that the quadratic model promised,

    $$
    \text{gain} = \frac{\varphi(z) - \varphi(z + \delta)}
    {-(g + c (z - \text{mean})) \cdot \delta - \frac{1}{2} \delta \cdot (H + c I) \delta}
    $$

    The step is taken if $\varphi$ fell and the gain is above 0.001. Then
    $\lambda$ is multiplied by ``down`` where the gain is above 0.75, by 2 where it is below
    0.25. A step that is not taken multiplies it by ``up``, and the next one is solved from the same
    g and H. $\lambda$ stays within 1e-8 and 1e8. It begins every stage at ``damping``.

    Under ``Clip``, a component at a bound that its gradient pushes outwards stays out of the
    system, and the step is clipped before it is judged; so is a latent that a stage begins with.
    Other constraints act on the stepped latent as after any step.

    Every step counts, taken or not, and costs one evaluation of the loss; the normal
    equations (g and H) are evaluated where a stage begins and where a step was taken. The stop
    rules look at the losses of steps that were taken. A stage is stalled as well once
    $\lambda$ is above 1e5 after a step that was not taken, or when no $\lambda$ makes
    the matrix positive definite. A loss that is not finite at the stepped latent is a step that is
    not taken.

    The bundle must hold the loss's normal equations (``pyinv.export`` writes them for "mse" and
    "whitened"). Targets must not affect one another: no ``MomentPenalty``, no batch norm over the
    batch.

    Args:
        damping: lambda at the start of a stage, relative to the mean curvature m; above 0.
        up: what lambda is multiplied by after a step that was not taken, above 1.
        down: what it is multiplied by after one that did as promised, above 0 and below 1.

    Source: Levenberg 1944 (the damping, $\lambda I$); Marquardt 1963 (raised after a failure,
    lowered after a success). Acceptance by the gain, and its thresholds 1/4 and 3/4: Moré 1978,
    for a trust region's radius; for the damping: Nielsen 1999, who scales the first one by the
    largest element of the diagonal. The mean instead, held throughout, and the numbers are ours:
    picked on 32 images of each of two 100-dimensional generators.
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
    r"""Quasi-Newton steps whose curvature comes from the last gradients: for latents of any length.

    With $\varphi(z) = \text{loss} + \frac{c}{2} \lVert z - \text{mean} \rVert^2$, c the
    curvature of a ``PriorPenalty`` (0 without one) and g the gradient of $\varphi$, a step is

    $$
    z' = z - t H g
    $$

    H is the inverse Hessian as the last ``history`` pairs of a step s and of the difference y that
    it made to g tell it, from $\frac{s \cdot y}{y \cdot y} I$ of the newest pair on. While
    there are no pairs, the step is downhill and as long as ``first_step`` standard deviations of
    the prior. t is 1. The step is taken if the gradient is finite there and

    $$
    \varphi(z') \le \varphi(z) + 10^{-4}\, g \cdot (z' - z), \qquad
    \varphi(z') < \varphi(z)
    $$

    or else t is multiplied by 0.3, at most 11 times in a row. Then all pairs are forgotten, as they
    are when -H g does not lead downhill. A step gives a pair if
    $s \cdot y > 10^{-10}\, y \cdot y$, with c as it was for the step.

    Under ``Clip``, a component at a bound that its gradient pushes outwards stays out of g and of
    the step, and the step is clipped before it is judged. Other constraints act on the stepped
    latent as after any step.

    Every step counts, taken or not, and costs one evaluation of loss and gradient. The
    stop rules look at the losses of steps that were taken. A stage is stalled as well when 12 steps
    without any pairs were not taken, or when there is no way down.

    The memory is 2 ``history`` numbers per component of each latent in the batch. Targets must not
    affect one another: no ``MomentPenalty``, no batch norm over the batch. Where
    ``LevenbergMarquardt`` can be used it needs less time.

    Args:
        history: pairs, 1 to 1000.
        first_step: above 0; in units of the prior's standard deviation.

    Source: Nocedal 1980; Liu & Nocedal 1989; the product H g is algorithm 7.4 of Nocedal & Wright
    2006, the sufficient fall their algorithm 3.1. Components at bounds: Bertsekas 1982. The numbers
    are ours.
    """

    needs_independent_targets: ClassVar[bool] = True

    history: int = 20
    first_step: float = 0.3

    def __post_init__(self) -> None:
        self._count("history", at_least=1, at_most=1000)
        self._number("first_step", above=0.0)


Solver = GradientDescent | Adam | LevenbergMarquardt | LBFGS | RMSprop
SOLVERS: tuple[type[Solver], ...] = (GradientDescent, Adam, LevenbergMarquardt, LBFGS, RMSprop)
