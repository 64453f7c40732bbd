"""Recipes: complete inversion methods as data. A recipe is a sequence of stages.

``default`` is for any images. ``precise`` recovers the latents of generated images, ``decoder``
those of an autoencoder's decoder, and ``reconstruct`` finds the most probable latents. ``adam`` is
of first order. The others are published methods with the settings of their papers. Every recipe
function takes the bundle's manifest, ``inverter.manifest``. Any field can be changed:
``recipes.lipton(manifest).replace(max_steps=5000, learning_rate=0.5)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, TypeVar, cast

from pyinv import _core
from pyinv._rule import Rule
from pyinv.bundle import MAX_SOLVED, Manifest
from pyinv.constraints import (
    Clip,
    Constraint,
    LogisticCutoff,
    NoConstraint,
    StochasticClip,
)
from pyinv.errors import BundleError, RuleError
from pyinv.penalties import PENALTIES, MomentPenalty, Penalty, PriorPenalty
from pyinv.priors import Prior, Uniform
from pyinv.solvers import (
    LBFGS,
    SOLVERS,
    Adam,
    Cosine,
    GradientDescent,
    LevenbergMarquardt,
    Solver,
    StepDecay,
)
from pyinv.validation import noise_level

__all__ = [
    "EFFORTS",
    "RECIPES",
    "Recipe",
    "Stage",
    "adam",
    "creswell",
    "decoder",
    "default",
    "egan",
    "get",
    "lipton",
    "precise",
    "reconstruct",
    "with_loss",
]

F = TypeVar("F", bound=Callable[..., "Recipe"])

MAX_RESTARTS = _core.max_restarts
MAX_STEPS = _core.max_steps


@dataclass(frozen=True)
class Stage(Rule):
    """A solver with its constraint, penalties and stopping criteria.

    When the loss reaches ``loss_tolerance``, the target has converged and the whole attempt ends.
    When the loss stops changing (a plateau) or after ``max_steps`` steps (the step limit), the
    latent passes to the next stage, whose solver starts with fresh moments.

    Args:
        solver: ``GradientDescent(...)``, ``Adam(...)``, ``RMSprop(...)``, ``LBFGS(...)`` or
            ``LevenbergMarquardt(...)``.
        constraint: what happens to a component that leaves the prior.
        penalties: terms added to the loss, each kind at most once. The stopping criteria ignore
            them.
        loss: name of the loss to minimise. The bundle must contain its objective, and for
            ``LevenbergMarquardt`` its normal equations.
        max_steps: maximum number of steps, at least 1. Rejected steps of ``LevenbergMarquardt`` and
            ``LBFGS`` count.
        loss_tolerance: the target converges when the loss is at or below this, and not negative; 0
            disables.
        change_tolerance: a step makes no progress if the loss changes by at most this; 0 disables.
        relative_change_tolerance: a step makes no progress if the loss changes by at most this
            fraction of itself; 0 disables.
        patience: the stage ends after this many steps in a row without progress, at least 1.
        reset_moments: reset a component's moments to zero when the constraint resamples it; Adam's
            bias correction then counts the steps since. ``LevenbergMarquardt`` and ``LBFGS`` have
            no moments.

    Raises:
        RuleError: a value out of range, or a ``MomentPenalty`` with ``LevenbergMarquardt`` or
            ``LBFGS``.
    """

    solver: Solver
    constraint: Constraint = field(default=NoConstraint())
    penalties: tuple[Penalty, ...] = ()
    loss: str = "mse"
    max_steps: int = 1000
    loss_tolerance: float = 0.0
    change_tolerance: float = 0.0
    relative_change_tolerance: float = 0.0
    patience: int = 1
    reset_moments: bool = True

    def __post_init__(self) -> None:
        self._instance("solver", SOLVERS)
        if not isinstance(self.constraint, Constraint):
            raise RuleError(
                "Stage: constraint must be a constraint such as Clip() or NoConstraint(), "
                f"got {self.constraint!r}"
            )
        if not isinstance(self.penalties, (tuple, list)) or not all(
            isinstance(penalty, PENALTIES) for penalty in self.penalties
        ):
            raise RuleError(
                "Stage: penalties must be a tuple of MomentPenalty(...) or PriorPenalty(...), "
                f"got {self.penalties!r}"
            )
        object.__setattr__(self, "penalties", tuple(self.penalties))
        kinds = [penalty.kind() for penalty in self.penalties]
        if len(set(kinds)) < len(kinds):
            raise RuleError(
                f"Stage: penalties must hold each kind once, got {', '.join(kinds)}; "
                "add up their weights instead"
            )
        if self.solver.needs_independent_targets and MomentPenalty.kind() in kinds:
            raise RuleError(
                f"Stage: {type(self.solver).__name__} takes no MomentPenalty, whose curvature "
                "is not constant; use PriorPenalty, or Adam"
            )
        if not isinstance(self.loss, str) or not self.loss:
            raise RuleError(f'Stage: loss must be a loss\'s name such as "mse", got {self.loss!r}')
        self._count("max_steps", at_least=1, at_most=MAX_STEPS)
        self._number("loss_tolerance", at_least=0.0, single=False)
        self._number("change_tolerance", at_least=0.0, single=False)
        self._number("relative_change_tolerance", at_least=0.0, single=False)
        self._count("patience", at_least=1, at_most=MAX_STEPS)
        self._flag("reset_moments")

    def fit(self, prior: Prior) -> Stage:
        """Return this stage with its open settings filled in from the prior.

        Raises:
            RuleError: the constraint does not fit the prior.
        """
        return dataclasses.replace(
            self,
            constraint=self.constraint.fit(prior, max_steps=self.max_steps),
        )


@dataclass(frozen=True)
class Recipe(Rule):
    """An inversion method: stages, restarts, and which latent of an attempt to keep.

    Args:
        name: name of the recipe in reports.
        stages: one or more ``Stage``, run in order.
        restarts: maximum number of further attempts for a target that has not converged, 0 to 4095.
            Each starts from a new draw, or from a hop if ``hop_size`` is set. The attempt with the
            lowest loss is kept; the loss includes the last stage's ``PriorPenalty`` unless that is
            annealed.
        keep: "best" keeps the latent of an attempt's lowest loss in its last stage, "last" the
            attempt's last latent. Rejected steps of ``LevenbergMarquardt`` and ``LBFGS`` do not
            count.
        start: where a target's first attempt starts: "prior" draws a latent, "mean" uses the
            prior's mean (the midpoint of a uniform prior), "encoder" uses the bundle's encoder.
            If ``LBFGS`` finds no slope at the mean, as in generators whose first activations are
            all zero there, one more attempt is made. Latents passed to ``invert`` as ``init`` take
            precedence.
        hop_size: 0 makes every restart draw a new latent and run all stages. A value h above 0, up
            to 1, makes restarts hops: each runs only the last stage and starts near the best latent
            so far. With y = (z - mean)/std, it starts at sqrt(1 - h²) y + h · draw for a normal
            prior and at (1 - h) y + h · draw for a uniform one. Use hops for losses with many
            neighbouring optima.

    Raises:
        RuleError: a value out of range.

    Source: hops are basin hopping (Wales & Doye 1997) that never accepts a higher loss (Leary
    2000), with the proposal of Neal 1998, which preserves a normal prior.
    """

    name: str
    stages: tuple[Stage, ...]
    restarts: int = 0
    keep: str = "best"
    start: str = "prior"
    hop_size: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise RuleError(f"Recipe: name must be a text, got {self.name!r}")
        stages = (self.stages,) if isinstance(self.stages, Stage) else self.stages
        if (
            not isinstance(stages, (tuple, list))
            or not stages
            or not all(isinstance(stage, Stage) for stage in stages)
        ):
            raise RuleError(f"Recipe: stages must be one Stage(...) or more, got {self.stages!r}")
        object.__setattr__(self, "stages", tuple(stages))
        if self.max_steps > MAX_STEPS:
            raise RuleError(
                f"Recipe: the stages' max_steps must add up to at most {MAX_STEPS}, "
                f"got {self.max_steps}"
            )
        self._count("restarts", at_least=0, at_most=MAX_RESTARTS)
        self._choice("keep", ("best", "last"))
        self._choice("start", ("prior", "mean", "encoder"))
        self._number("hop_size", at_least=0.0, at_most=1.0, single=False)

    @property
    def max_steps(self) -> int:
        """The maximum number of steps of one attempt, over all stages."""
        return sum(stage.max_steps for stage in self.stages)

    @property
    def needs_normal_equations(self) -> bool:
        """Whether a stage's solver needs the normal equations of its loss."""
        return any(stage.solver.needs_normal_equations for stage in self.stages)

    @property
    def couples(self) -> bool:
        """Whether targets affect one another through a moment penalty over the batch."""
        return any(
            isinstance(penalty, MomentPenalty) and penalty.over == "batch"
            for stage in self.stages
            for penalty in stage.penalties
        )

    def is_coupled(self, manifest: Manifest) -> bool:
        """Whether targets affect one another on this bundle, through the recipe or batch norm.

        Raises:
            RuleError: the recipe couples targets, and one of its solvers needs independent ones.
            BundleError: the bundle couples targets, and one of the solvers needs independent ones.
        """
        by_bundle = manifest.batch_norm == "batch"
        for stage in self.stages:
            if not (stage.solver.needs_independent_targets and (self.couples or by_bundle)):
                continue
            needs = (
                f"recipe {self.name}: {type(stage.solver).__name__} needs targets that do not "
                "affect one another, and "
            )
            if self.couples:
                raise RuleError(
                    f'{needs}MomentPenalty(over="batch") ties them together; give it over="latent"'
                )
            raise BundleError(
                f"{needs}this bundle takes batch-norm statistics over the batch; export it "
                'again with batch_norm="eval", or choose a recipe of first order'
            )
        return self.couples or by_bundle

    def fit(self, prior: Prior) -> Recipe:
        """Return this recipe with its open settings filled in from the prior.

        Raises:
            RuleError: a constraint does not fit the prior.
        """
        try:
            stages = tuple(stage.fit(prior) for stage in self.stages)
        except RuleError as error:
            other = "" if self.name == "default" else ", or the recipe default"
            raise RuleError(f"recipe {self.name}: {error}{other}") from None
        return dataclasses.replace(self, stages=stages)

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed.

        Args:
            changes: fields of the recipe (``restarts``, ``keep``, ``start``, ``hop_size``,
                ``name``, ``stages``), of its stages (``max_steps``, ``constraint``, ``loss``,
                ``loss_tolerance``, ...) or of their solvers (``learning_rate``, ``schedule``,
                ``momentum``, ``beta1``, ``damping``, ...). A stage's field changes in every stage,
                and a solver's field in every stage whose solver has it.

        Returns:
            the changed recipe. Schedules that count steps do not scale with ``max_steps``.

        Raises:
            RuleError: an unknown field, or a value out of range.

        Examples:
            >>> recipe = lipton(manifest).replace(learning_rate=0.5)  # doctest: +SKIP
            >>> recipe.stages[0].solver.learning_rate  # doctest: +SKIP
            0.5
        """
        own = {name: changes.pop(name) for name in _names(Recipe) if name in changes}
        of_stage = {name: changes.pop(name) for name in _names(Stage) if name in changes}
        changed = dataclasses.replace(self, **own)
        of_solvers = [name for stage in changed.stages for name in _names(type(stage.solver))]
        for name in changes:
            if name not in of_solvers:
                known = dict.fromkeys([*_names(Recipe), *_names(Stage), *of_solvers])
                raise RuleError(
                    f"recipe {self.name} has no field {name!r} to change; "
                    f"its fields are {', '.join(known)}"
                )
        stages = []
        for stage in changed.stages:
            own_fields = _names(type(stage.solver))
            of_solver = {name: value for name, value in changes.items() if name in own_fields}
            solver = dataclasses.replace(stage.solver, **of_solver)
            stages.append(dataclasses.replace(stage, solver=solver, **of_stage))
        return dataclasses.replace(changed, stages=tuple(stages))


# With a relative PriorPenalty of this weight, Levenberg-Marquardt from the prior's mean found the
# right latent for each of 32 digits of a 100-dimensional generator.
_EARLY_WEIGHT = 1.0
_FAST_WEIGHT = 0.1
# Hops of each effort, and the most steps of the last stage.
_EFFORTS = {"fast": (0, 60), "default": (1, 200), "best": (32, 200)}
EFFORTS = tuple(_EFFORTS)
"""How much ``default`` may spend on a target, least first."""


def _of_manifest(recipe: F) -> F:
    """Decorate a recipe function: raise an error unless its first argument is a manifest."""

    @wraps(recipe)
    def checked(manifest: Manifest, *args: Any, **kwargs: Any) -> Recipe:
        if not isinstance(manifest, Manifest):
            raise RuleError(
                f"recipes.{recipe.__name__} takes a bundle's manifest, inverter.manifest or "
                f"bundle.manifest, got {type(manifest).__name__}"
            )
        return recipe(manifest, *args, **kwargs)

    return cast(F, checked)


@_of_manifest
def default(
    manifest: Manifest,
    *,
    effort: str = "default",
    start: str = "mean",
    prior_weight: float = 0.001,
) -> Recipe:
    """L-BFGS from the prior's mean, for any images: the lowest error of the pixels at its cost.

    Args:
        manifest: the bundle's manifest; its prior selects the rules.
        effort: "fast" (at most 60 steps), "default" (300 steps and a hop of 200) or "best" (32
            hops).
        start: where the first attempt starts, see ``Recipe``.
        prior_weight: how strongly latents are held near the prior: the weight of a relative
            ``PriorPenalty``, at least 0. 0.001 only stops components that hardly change the image
            from growing; 0.1 keeps latents noticeably more probable, for a somewhat larger error; 0
            minimises the error of the pixels alone.

    The first stage of at most 100 steps has a relative penalty of weight 1, which leads to better
    optima. A start from an encoder leaves it out. "fast" has one stage with a penalty of at least
    0.1, which costs it nothing. Hops of size 0.6 look for better optima nearby. With a uniform
    prior, latents are clipped to its bounds. The solver starts from the bundle's preconditioner, if
    it has one. Converged means a mean squared error of 1e-8 in the bundle's value range.

    In a bundle with batch statistics (``batch_norm="batch"``), targets affect one another, which
    L-BFGS does not allow: the recipe is then ``adam``, whatever the effort.

    Raises:
        RuleError: an argument out of range.

    Source: ours. docs/recovery.md says what each part contributes.
    """
    if effort not in EFFORTS:
        raise RuleError(f"default: effort must be one of {', '.join(EFFORTS)}; got {effort!r}")
    penalty = PriorPenalty(prior_weight, relative=True)
    if manifest.batch_norm == "batch":
        return adam(manifest).replace(name="default", start="prior" if start == "mean" else start)
    hops, steps = _EFFORTS[effort]
    if effort == "fast" and penalty.weight < _FAST_WEIGHT:
        penalty = PriorPenalty(_FAST_WEIGHT, relative=True)
    settle = Stage(
        LBFGS(),
        _bounds_of(manifest.prior),
        penalties=(penalty,) if penalty.weight else (),
        max_steps=steps,
        loss_tolerance=1e-8,
        relative_change_tolerance=1e-4,
        patience=3,
    )
    seek = dataclasses.replace(
        settle, penalties=(PriorPenalty(_EARLY_WEIGHT, relative=True),), max_steps=100
    )
    stages = (settle,) if effort == "fast" or start == "encoder" else (seek, settle)
    return Recipe("default", stages, restarts=hops, start=start, hop_size=0.6 if hops else 0.0)


@_of_manifest
def adam(manifest: Manifest) -> Recipe:
    """Adam with a decaying learning rate, constrained to the prior. Works with any bundle.

    With a uniform prior, latents are clipped to its bounds. With a normal prior, an annealed
    -log p(z) penalty keeps the latent probable early on, and the last steps minimise the loss
    alone. Intended for 1,000 to 2,000 steps; the schedules scale with ``max_steps``.

    Args:
        manifest: the bundle's manifest; its prior selects the rules.

    Source: ours. The settings were chosen by hand, on the same images that they are reported for,
    with one seed and 1,000 steps: 9 settings on 32 images of a 32x32 face generator (uniform prior,
    d = 100), 23 on 48 generated and 48 real digits of a small VAE (normal prior, d = 20), over
    learning rate, beta2, final learning rate and penalty weight. On the faces, the median loss was
    3.3e-5 with clipping, 3.7e-5 without a constraint and 1.3e-4 with stochastic clipping: Adam's
    steps keep crossing the bounds, and each resampling discards progress. (Stochastic clipping was
    designed for gradient descent with its small steps; see ``lipton``.) Converged means a root mean
    square error of 1e-4 in the bundle's value range.
    """
    rules: dict[str, Any]
    if isinstance(manifest.prior, Uniform):
        rules = {"constraint": Clip()}
    else:
        rules = {"penalties": (PriorPenalty(weight=0.001, anneal=True),)}
    solver = Adam(0.1, beta2=0.99, schedule=Cosine(final=0.1))
    stage = Stage(solver, max_steps=1000, loss_tolerance=1e-8, **rules)
    return Recipe("adam", (stage,))


@_of_manifest
def lipton(manifest: Manifest, clipping: str = "stochastic") -> Recipe:
    """Gradient descent with clipping, for uniform priors.

    Args:
        manifest: the bundle's manifest. The recipe is the same for all bundles.
        clipping: "stochastic", "standard" or "none".

    The paper specifies the step and the clipping, and 100,000 steps for its Table 1, but not the
    learning rate. Ours comes from the authors' public code: 1.0, halved every 50,000 of 80,000
    steps (100,000 for the untrained net), on a loss averaged over pixels. That code counts a latent
    as recovered if its error was below the threshold at any step, and runs batch norm on batch
    statistics (``batch_norm="batch"`` at export).

    Source: Lipton & Tripathi 2017, section 2.
    """
    constraints: dict[str, Constraint] = {
        "stochastic": StochasticClip(),
        "standard": Clip(),
        "none": NoConstraint(),
    }
    if clipping not in tuple(constraints):
        raise RuleError(
            f"lipton: clipping must be one of {', '.join(constraints)}; got {clipping!r}"
        )
    stage = Stage(
        GradientDescent(1.0, schedule=StepDecay(every=50_000, factor=0.5)),
        constraint=constraints[clipping],
        max_steps=80_000,
    )
    return Recipe("lipton", (stage,), keep="last")


@_of_manifest
def creswell(manifest: Manifest) -> Recipe:
    """Binary cross-entropy; clipping for a uniform prior, a moment penalty for a normal one.

    Args:
        manifest: the bundle's manifest; its prior selects the rules.

    The bundle needs the loss "bce". The paper specifies the loss, the clipping, equation 5 and its
    weights (1), and that targets run as a batch, but not the solver, its learning rate or the
    number of steps. Ours come from a later version of the authors' public code: RMSprop with
    learning rate 0.01 and 5,000 steps (that code goes up to 10,000). Here it runs as
    ``Adam(0.01, beta1=0, beta2=0.99)``, which has no mean of gradients and differs from RMSprop
    only in its bias correction, that is in the first few hundred steps. That code minimises the
    mean squared error minus 0.01 log p(z) instead of the paper's loss.

    Source: Creswell & Bharath 2016, algorithm 1, equation 5 and section 5.
    """
    rules: dict[str, Any]
    if isinstance(manifest.prior, Uniform):
        rules = {"constraint": Clip()}
    else:
        rules = {"penalties": (MomentPenalty(1.0, 1.0, over="batch"),)}
    stage = Stage(Adam(0.01, beta1=0.0, beta2=0.99), loss="bce", max_steps=5_000, **rules)
    return Recipe("creswell", (stage,), keep="last")


@_of_manifest
def egan(manifest: Manifest, criterion: Constraint | None = None) -> Recipe:
    """Adam with resampling of improbable components, for normal priors.

    Args:
        manifest: the bundle's manifest. The recipe is the same for all bundles.
        criterion: ``HardCutoff(c)``, ``LogisticCutoff(a, b)``, ``TruncatedNormalCutoff(a)`` or
            ``NoConstraint()`` ("disabled" in the paper). None uses ``LogisticCutoff(2, 2)``, which
            has the lowest error in the paper's Table 1.

    The paper specifies 20,000 steps, which are also the horizon E of the criteria. It says that
    Adam adjusts the learning rate, but not with which settings. Ours come from the authors' public
    code: learning rate 0.01, betas 0.5 and 0.999, a stop when the loss changes by less than 1e-10,
    and moments that are not reset when a component is resampled. That code gives all components
    resampled in one step the same draw; here each has its own.

    Source: Egan et al. 2018, algorithm 1 and section 4.2.1.
    """
    stage = Stage(
        Adam(0.01, beta1=0.5, beta2=0.999),
        constraint=LogisticCutoff(2.0, 2.0) if criterion is None else criterion,
        max_steps=20_000,
        change_tolerance=1e-10,
        reset_moments=False,
    )
    return Recipe("egan", (stage,), keep="last")


# Mean squared errors at or below this are rounding errors of the generator.
_EXACT_MSE = 1e-10


@_of_manifest
def precise(manifest: Manifest, *, start: str = "mean") -> Recipe:
    """Levenberg-Marquardt from the prior's mean, for images generated by this generator.

    Args:
        manifest: the bundle's manifest. The bundle must contain the normal equations of "whitened"
            or "mse", unless the solver is ``LBFGS``: for latents of more than 512 components, or
            from an encoder (see ``start``).
        start: where the first attempt starts, see ``Recipe``. With "encoder" and a bundle without
            the loss "whitened", the recipe is ``reconstruct`` from the encoder with a loss
            tolerance: the solver is ``LBFGS``, which needs only the objective, and there are up to
            twenty hops.

    The loss is "whitened" if the bundle has it. It measures the residual before the generator's
    final tanh or sigmoid, so that pixels near the ends of the value range count as much as others;
    a pixel within 1e-4 of an end only has to be within 1e-4 of it. A penalty proportional to the
    loss keeps the latent probable on the way and vanishes at an exact latent. A uniform prior is
    also enforced by clipping.

    The first stage runs until the loss stops falling, at the rounding error of the image. A last
    stage without penalty checks whether the latent is exact: a whitened loss at or below 1e-8, or
    an mse at or below 1e-10. If it is not, the target restarts from a random draw, at most ten
    times. The loss of images that the generator did not make never falls that far; for those, use
    ``reconstruct``.

    Latents of more than 512 components are too large for normal equations. For those the solver is
    ``LBFGS``, which needs only the objective, with up to 1,500 steps per attempt.

    Raises:
        BundleError: the recipe needs normal equations that the bundle does not have; the message
            says how to get them.

    Source: ours. It combines ``LevenbergMarquardt`` and ``PriorPenalty``; docs/recovery.md has
    measurements of what each part contributes.
    """
    if start == "encoder" and "whitened" not in manifest.losses:
        recipe = reconstruct(manifest, start=start).replace(name="precise", keep="best")
        return recipe.replace(loss_tolerance=_EXACT_MSE, restarts=20)
    solved = [loss for loss in ("whitened", "mse") if manifest.has_normal_equations(loss)]
    solver: Solver
    if not solved and manifest.latent_size > MAX_SOLVED:
        loss = "whitened" if "whitened" in manifest.losses else "mse"
        solver = LBFGS()
        ends: dict[str, Any] = {
            "max_steps": 1500,
            "relative_change_tolerance": 1e-4,
            "patience": 10,
        }
    else:
        loss = solved[0] if solved else "mse"
        manifest.normal_equations(loss)
        solver = LevenbergMarquardt()
        ends = {"max_steps": 100, "relative_change_tolerance": 1e-2}
    stage = Stage(solver, _bounds_of(manifest.prior), loss=loss)
    penalties = (PriorPenalty(_EARLY_WEIGHT, relative=True),)
    seek = dataclasses.replace(stage, penalties=penalties, loss_tolerance=1e-12, **ends)
    tolerance = 1e-8 if loss == "whitened" else _EXACT_MSE
    # Ends after the first accepted step, or when no step is accepted: a plateau unless exact.
    check = dataclasses.replace(
        stage, max_steps=20, loss_tolerance=tolerance, relative_change_tolerance=1.0
    )
    return Recipe("precise", (seek, check), restarts=10, start=start)


@_of_manifest
def reconstruct(
    manifest: Manifest,
    noise: float | None = None,
    *,
    start: str = "mean",
    n_values: float | None = None,
) -> Recipe:
    r"""Find the most probable latent given the pixels, for photographs and noisy images.

    Args:
        manifest: the bundle's manifest. The bundle must contain the normal equations of "mse"
            unless ``start`` is "encoder".
        noise: standard deviation s of the noise on each of the P pixel values, in the bundle's
            value range, above 0. None estimates it jointly with the latent.
        start: where the first attempt starts, see ``Recipe``. With "encoder" the solver is
            ``LBFGS``, which needs only the objective: near an optimum, its many cheap steps get
            further than the few expensive ones of ``LevenbergMarquardt``.
        n_values: P, the number of values of a target, above 0, if not all of them count: for
            targets with weights, the sum of the weights if the noise is known, and otherwise the
            number of weights above 0. None means all.

    Under a normal prior the result is the maximum a posteriori latent. With
    $y = (z - \text{mean}) / \text{std}$ and Gaussian noise,

    $$
    -\log p(z, s \mid x) = \frac{P}{2 s^2} \text{mse}(z) + P \log s
    + \frac{1}{2} \lVert y \rVert^2 + \text{const}
    $$

    If s is known, multiplying by $2 s^2 / P$ gives
    $\text{mse} + \frac{s^2}{P} \lVert y \rVert^2$, which is a ``PriorPenalty`` of weight
    $2 s^2 d / P$. If s is unknown, the minimum over s is at $s^2 = \text{mse}(z)$. The
    remaining $\frac{P}{2} \log \text{mse}(z) + \frac{1}{2} \lVert y \rVert^2$ is what a
    relative ``PriorPenalty`` of weight $2 d / P$ minimises. Both weights are small. Unless
    an encoder provides a starting point, a first stage with the larger relative penalty of
    ``precise`` finds one.

    A uniform prior is treated as the normal prior with the same moments, clipped to its bounds: see
    ``PriorPenalty``.

    Each attempt keeps its last latent, because earlier latents of lower loss would be less
    probable. There are often better optima near the one that the first attempt finds. Eight hops of
    the last stage search for them, and the most probable latent is kept.

    Raises:
        BundleError: ``start`` is not "encoder", and the bundle has no normal equations of "mse";
            the message says how to get them.
        InputError: noise out of range.

    Source: ours; the maximum a posteriori estimate is textbook material.
    """
    noise = noise_level(noise)
    share = 2 * manifest.latent_size / (manifest.target_size if n_values is None else n_values)
    final = PriorPenalty(share, relative=True) if noise is None else PriorPenalty(share * noise**2)
    settle = Stage(
        LevenbergMarquardt(),
        _bounds_of(manifest.prior),
        penalties=(final,),
        max_steps=50,
        relative_change_tolerance=1e-3,
    )
    if start == "encoder":
        settle = dataclasses.replace(
            settle, solver=LBFGS(), max_steps=800, relative_change_tolerance=1e-4, patience=3
        )
        stages: tuple[Stage, ...] = (settle,)
    else:
        manifest.normal_equations("mse")
        early = PriorPenalty(max(_EARLY_WEIGHT, share), relative=True)
        seek = dataclasses.replace(settle, penalties=(early,), relative_change_tolerance=1e-2)
        stages = (seek, settle)
    return Recipe("reconstruct", stages, restarts=8, keep="last", start=start, hop_size=0.3)


@_of_manifest
def decoder(manifest: Manifest) -> Recipe:
    """L-BFGS from the encoder, for decoders of autoencoders such as that of latent diffusion.

    Args:
        manifest: the bundle's manifest. The bundle must contain an encoder.

    For images that the decoder made from a latent close to the encoder's, as floats or saved as
    8-bit files. The encoder of an autoencoder starts in the right optimum, so there are no restarts
    and no penalty. Converged means a mean squared error of 1e-12, about the rounding error of the
    pixels. On 8-bit files every target ends on a plateau.

    Source: ours. docs/recovery.md compares it with 100 steps of Adam, the fixed-point iteration of
    Hong et al. 2024 (arXiv:2409.18442), Gauss-Newton and Levenberg-Marquardt.
    """
    stage = Stage(
        LBFGS(),
        _bounds_of(manifest.prior),
        max_steps=800,
        loss_tolerance=1e-12,
        relative_change_tolerance=1e-4,
        patience=3,
    )
    return Recipe("decoder", (stage,), start="encoder")


def _bounds_of(prior: Prior) -> Constraint:
    return Clip() if isinstance(prior, Uniform) else NoConstraint()


RECIPES: dict[str, Callable[[Manifest], Recipe]] = {
    "default": default,
    "adam": adam,
    "lipton": lipton,
    "creswell": creswell,
    "egan": egan,
    "precise": precise,
    "reconstruct": reconstruct,
    "decoder": decoder,
}
"""Every named recipe, as a function of the bundle's manifest."""


def get(
    name: str,
    manifest: Manifest,
    *,
    start: str | None = None,
    effort: str | None = None,
    initial: bool = False,
) -> Recipe:
    """Return the named recipe for a bundle.

    Args:
        name: one of ``RECIPES``.
        manifest: the bundle's manifest.
        start: where first attempts start, see ``Recipe``; None uses the recipe's default. With
            "encoder", recipes may also use another solver and other settings.
        effort: for "default", one of ``EFFORTS``.
        initial: whether the first attempts will start from given latents. "default" then leaves out
            its first stage, which would lead away from them.

    Raises:
        RuleError: no recipe has this name; the message lists the names. Or the effort is unknown,
            or given for another recipe than "default".
        BundleError: the bundle has no function that the recipe needs.
    """
    if name not in tuple(RECIPES):
        meant = ""
        if name in EFFORTS:
            meant = f'; did you mean effort="{name}" (in the shell, --effort {name})?'
        raise RuleError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}{meant}")
    if name == "default":
        begin = "encoder" if initial else start or "mean"
        recipe = default(manifest, effort=effort or "default", start=begin)
        return recipe.replace(start=start or "mean") if initial else recipe
    if effort is not None:
        raise RuleError(f'effort is for the recipe "default", not for {name!r}; leave it out')
    if start is None:
        return RECIPES[name](manifest)
    if name == "precise":
        return precise(manifest, start=start)
    if name == "reconstruct":
        return reconstruct(manifest, start=start)
    return RECIPES[name](manifest).replace(start=start)


def with_loss(recipe: Recipe, loss: str, manifest: Manifest) -> Recipe:
    """Return the recipe with another loss of the bundle in every stage.

    Args:
        recipe: the recipe. Its tolerances and penalties stay as they are.
        loss: one of ``manifest.losses``.
        manifest: the bundle's manifest.

    Raises:
        RuleError: ``loss`` is not a name.
        BundleError: the bundle does not have this loss, or the recipe needs its normal equations
            and there are none; the message says which losses will do, and how to export others.
    """
    if callable(loss):
        raise RuleError(
            "loss must be the name of one of the bundle's losses, got a function; its gradient is "
            'made at export: export(..., losses={..., "mine": function}), then loss="mine"'
        )
    changed = recipe.replace(loss=loss)
    manifest.objective(loss)
    if recipe.needs_normal_equations and not manifest.has_normal_equations(loss):
        solved = [name for name in manifest.losses if manifest.has_normal_equations(name)]
        raise BundleError(
            f"recipe {recipe.name} needs normal equations, which this bundle does not have of the "
            f"loss {loss!r}{', only of ' + ', '.join(solved) if solved else ''}; use a recipe "
            'that needs gradients only, such as recipe="default"'
        )
    return changed


def _names(cls: type[Rule]) -> list[str]:
    return [field.name for field in fields(cls)]  # type: ignore[arg-type]
