"""Solvers: how a latent moves along its gradient; and schedules: how the learning rate changes.

k counts the updates within a stage, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyinv._rule import Rule

__all__ = ["Adam", "Constant", "Cosine", "GradientDescent", "Schedule", "Solver", "StepDecay"]


@dataclass(frozen=True)
class Constant(Rule):
    r"""Keep the learning rate.

    .. math:: \eta_k = \eta
    """


@dataclass(frozen=True)
class StepDecay(Rule):
    r"""Multiply the learning rate by ``factor`` every ``every`` updates.

    .. math:: \eta_k = \eta \cdot \text{factor}^{\lfloor k / \text{every} \rfloor}

    Args:
        every: updates between two changes, at least 1.
        factor: above 0, at most 1.

    Source: the learning rate "attenuated over time" of Lipton & Tripathi 2017, section 2, whose
    code halves it every 50,000 updates.
    """

    every: int
    factor: float

    def __post_init__(self) -> None:
        self._count("every", at_least=1)
        self._number("factor", above=0.0, at_most=1.0, single=False)


@dataclass(frozen=True)
class Cosine(Rule):
    r"""Lower the learning rate along half a cosine, down to ``final`` of it at ``max_steps``.

    .. math:: \eta_k = \eta \left(\text{final} + (1 - \text{final})
        \frac{1 + \cos(\pi k / \text{max\_steps})}{2}\right)

    Args:
        final: the share of the learning rate that is left at the end, 0 to 1.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, one period.
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        self._number("final", at_least=0.0, at_most=1.0, single=False)


Schedule = Constant | StepDecay | Cosine
_SCHEDULES = (Constant, StepDecay, Cosine)


@dataclass(frozen=True)
class GradientDescent(Rule):
    r"""Gradient descent, with heavy-ball momentum if asked for.

    .. math:: m \leftarrow \text{momentum} \cdot m + g, \qquad z \leftarrow z - \eta_k m

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
class Adam(Rule):
    r"""Adam: steps scaled by running means of the gradient and of its square.

    .. math:: m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        z &\leftarrow z - \frac{\eta_k}{1 - \beta_1^{k+1}}
        \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^{k+1}} + \epsilon}

    A component that a constraint draws anew starts afresh: its moments are zero, and its k counts
    its own updates. (With the stage's k, its next steps would be up to 6.5 times the learning
    rate.) ``Stage(reset_moments=False)`` switches both off.

    Args:
        learning_rate: eta, above 0. About the distance that a component moves in one update.
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


Solver = GradientDescent | Adam
SOLVERS: tuple[type[GradientDescent] | type[Adam], ...] = (GradientDescent, Adam)
