"""Recipes: a whole method as data. A recipe is a list of stages that a target runs through.

``precise`` recovers latents of images that the generator made, ``reconstruct`` finds latents for
other images, ``default`` needs gradients only. The others are the papers' methods with the papers'
settings. Any field can be changed:
``recipes.lipton(manifest).replace(max_steps=5000, learning_rate=0.5)``. Every function that makes a
recipe takes the bundle's manifest, ``inverter.manifest``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

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
    "RECIPES",
    "Recipe",
    "Stage",
    "creswell",
    "default",
    "egan",
    "get",
    "lipton",
    "precise",
    "reconstruct",
]

# The engine's random draws keep 12 bits for the attempt and 32 for the step within it.
MAX_RESTARTS = 2**12 - 1
MAX_STEPS = 2**32 - 1


@dataclass(frozen=True)
class Stage(Rule):
    """One way of moving a latent, and when to stop.

    A stage that meets ``loss_tolerance`` ends the whole attempt: converged. A stage whose loss
    changes too little (stalled) or that has made ``max_steps`` steps (step limit) gives its
    latent to the next one, which starts with fresh moments.

    Args:
        solver: ``Adam(...)``, ``GradientDescent(...)``, ``LevenbergMarquardt(...)`` or
            ``LBFGS(...)``.
        constraint: what happens to a component that leaves the prior.
        penalties: terms added to the loss, each kind at most once; they do not count for
            stopping.
        loss: name of the loss to minimise; the bundle must hold its objective, and for
            ``LevenbergMarquardt`` its normal equations.
        max_steps: the most steps, at least 1. One that ``LevenbergMarquardt`` or ``LBFGS`` tries
            and does not take counts.
        loss_tolerance: converged at a loss at or below this; 0 never.
        change_tolerance: a step is still when the loss changes by this or less; 0 never.
        relative_change_tolerance: a step is still when the loss changes by this share of itself or
            less; 0 never.
        patience: stalled after this many still steps in a row, at least 1.
        reset_moments: a component drawn anew by the constraint starts with moments of zero,
            and Adam's bias corrections count its own steps. ``LevenbergMarquardt`` and ``LBFGS``
            have none.

    Raises:
        RuleError: a value out of its range, or a ``MomentPenalty`` for ``LevenbergMarquardt`` or
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
        """Return this stage with what its rules take from the prior filled in.

        Raises:
            RuleError: the constraint or a penalty does not fit the prior.
        """
        return dataclasses.replace(
            self,
            constraint=self.constraint.fit(prior, max_steps=self.max_steps),
            penalties=tuple(penalty.fit(prior) for penalty in self.penalties),
        )


@dataclass(frozen=True)
class Recipe(Rule):
    """A method: stages, further attempts, and which latent of an attempt to keep.

    Args:
        name: what to call it in reports.
        stages: one ``Stage`` or more, run in turn.
        restarts: attempts after the first, made while a target has not converged; 0 to 4095. Each
            begins at a fresh draw, unless ``hop_size`` is given. The best attempt is kept: of the
            lowest loss, with the last stage's ``PriorPenalty`` unless that is annealed.
        keep: "best" keeps an attempt's lowest loss in its last stage, "last" the loss it ended
            with. Of the steps of ``LevenbergMarquardt`` and ``LBFGS``, those that were taken count.
        start: where a target's first attempt begins: "prior" draws a latent, "mean" takes the
            prior's mean (a uniform one's middle), "encoder" what the bundle's encoder makes of the
            image. Latents given to ``invert`` as ``init`` come before all three.
        hop_size: 0: restarts are drawn, and run all stages. Above 0, up to 1: a restart is a hop.
            It runs the last stage alone, and begins near the best latent so far, moved by this
            share h of a draw: with y = (z - mean)/std, at sqrt(1 - h²) y + h · draw under a normal
            prior, at (1 - h) y + h · draw under a uniform one. For losses with many optima side by
            side.

    Raises:
        RuleError: a value out of its range.

    Source: hops are basin hopping (Wales & Doye 1997) that never goes up (Leary 2000), with the
    proposal of Neal 1998, which keeps a normal prior.
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
        """The most steps that one attempt makes over all its stages."""
        return sum(stage.max_steps for stage in self.stages)

    @property
    def needs_normal_equations(self) -> bool:
        """Whether a stage's solver needs the normal equations of its loss."""
        return any(stage.solver.needs_normal_equations for stage in self.stages)

    @property
    def couples(self) -> bool:
        """Whether targets affect one another: a moment penalty is taken over the batch."""
        return any(
            isinstance(penalty, MomentPenalty) and penalty.over == "batch"
            for stage in self.stages
            for penalty in stage.penalties
        )

    def is_coupled(self, manifest: Manifest) -> bool:
        """Whether targets affect one another on this bundle, by the recipe or by batch norm.

        Raises:
            RuleError: they do, by the recipe, and one of its solvers needs them not to.
            BundleError: they do, by the bundle.
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
        """Return this recipe with what its rules take from the prior filled in.

        Raises:
            RuleError: a constraint or a penalty does not fit the prior.
        """
        return dataclasses.replace(self, stages=tuple(stage.fit(prior) for stage in self.stages))

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed.

        Args:
            changes: fields of the recipe (``restarts``, ``keep``, ``start``, ``hop_size``,
                ``name``, ``stages``), of its stages (``max_steps``, ``constraint``, ``loss``,
                ``loss_tolerance``, ...) or of their solvers (``learning_rate``, ``schedule``,
                ``momentum``, ``beta1``, ``damping``, ...). A change to a stage applies to every
                stage, one to a solver to every stage whose solver has the field.

        Returns:
            the changed recipe. A schedule given in steps keeps its steps.

        Raises:
            RuleError: an unknown field, or a value out of its range.

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


def default(manifest: Manifest) -> Recipe:
    """Adam with a falling learning rate, kept inside the prior. What to try first.

    A uniform prior is kept by clipping. For a normal one, an annealed -log p(z) holds the latent
    back early on and leaves the end to the loss. Made for 1,000 to 2,000 steps; the schedules
    follow ``max_steps``.

    Args:
        manifest: the bundle's, for its prior.

    Source: ours. The numbers were picked by hand, on the images they are reported for, with one
    seed and 1,000 steps: 9 settings on 32 images of a 32x32 face generator (uniform prior,
    d = 100), 23 on 48 generated and 48 real digits of a small VAE (normal prior, d = 20), over
    learning rate, beta2, final learning rate and penalty weight. On the faces, clipping left a
    median loss of 3.3e-5, no constraint 3.7e-5 and stochastic clipping 1.3e-4: Adam's steps carry
    components over the bounds again and again, and each draw undoes what was found. (Gradient
    descent, with its small steps, is what stochastic clipping was made for; see ``lipton``.)
    Converged means a root mean square error of 1e-4 in the bundle's value range.
    """
    rules: dict[str, Any]
    if isinstance(manifest.prior, Uniform):
        rules = {"constraint": Clip()}
    else:
        rules = {"penalties": (PriorPenalty(weight=0.001, anneal=True),)}
    solver = Adam(0.1, beta2=0.99, schedule=Cosine(final=0.1))
    stage = Stage(solver, max_steps=1000, loss_tolerance=1e-8, **rules)
    return Recipe("default", (stage,))


def lipton(manifest: Manifest, clipping: str = "stochastic") -> Recipe:
    """Gradient descent with clipping, for uniform priors.

    Args:
        manifest: the bundle's. The recipe is the same for every one.
        clipping: "stochastic", "standard" or "none".

    The paper gives the step and the clipping, and 100,000 steps for its Table 1. It leaves out the
    learning rate. Ours is that of the authors' public code: 1.0, halved every 50,000 of 80,000
    steps (100,000 for the untrained net), on a loss averaged over pixels. That code counts a latent
    as recovered once its error was below the threshold at any step, and runs batch norm on batch
    statistics (``batch_norm="batch"`` at export).

    Source: Lipton & Tripathi 2017, section 2.
    """
    constraints: dict[str, Constraint] = {
        "stochastic": StochasticClip(),
        "standard": Clip(),
        "none": NoConstraint(),
    }
    if clipping not in constraints:
        raise RuleError(
            f"lipton: clipping must be one of {', '.join(constraints)}; got {clipping!r}"
        )
    stage = Stage(
        GradientDescent(1.0, schedule=StepDecay(every=50_000, factor=0.5)),
        constraint=constraints[clipping],
        max_steps=80_000,
    )
    return Recipe("lipton", (stage,), keep="last")


def creswell(manifest: Manifest) -> Recipe:
    """Binary cross-entropy; clipping for a uniform prior, a moment penalty for a normal one.

    Args:
        manifest: the bundle's, for its prior.

    The bundle needs the loss "bce". The paper gives the loss, the clipping, equation 5 and its
    weights (1), and that targets run as a batch. It leaves out the solver, its learning rate and
    the number of steps. Ours come from a later version of the authors' public code: RMSprop with
    learning rate 0.01 and 5,000 steps (that code goes up to 10,000), here as Adam without a mean
    of gradients, ``Adam(0.01, beta1=0, beta2=0.99)``, which differs from RMSprop in its bias
    correction, that is in the first few hundred steps. That code minimises the mean squared error
    minus 0.01 log p(z) instead of the paper's loss.

    Source: Creswell & Bharath 2016, algorithm 1, equation 5 and section 5.
    """
    rules: dict[str, Any]
    if isinstance(manifest.prior, Uniform):
        rules = {"constraint": Clip()}
    else:
        rules = {"penalties": (MomentPenalty(1.0, 1.0, over="batch"),)}
    stage = Stage(Adam(0.01, beta1=0.0, beta2=0.99), loss="bce", max_steps=5_000, **rules)
    return Recipe("creswell", (stage,), keep="last")


def egan(manifest: Manifest, criterion: Constraint | None = None) -> Recipe:
    """Adam with resampling of improbable components, for normal priors.

    Args:
        manifest: the bundle's. The recipe is the same for every one.
        criterion: ``HardCutoff(c)``, ``LogisticCutoff(a, b)``, ``TruncatedNormalCutoff(a)`` or
            ``NoConstraint()`` ("disabled" in the paper). None takes ``LogisticCutoff(2, 2)``, which
            has the lowest error in the paper's Table 1.

    The paper gives 20,000 steps, which are also the horizon E of the criteria. It says that Adam
    adjusts the learning rate and leaves out its settings. Ours are those of the authors' public
    code: learning rate 0.01, betas 0.5 and 0.999, an end when the loss changes by less than 1e-10,
    moments kept when a component is resampled. That code gives all components resampled in one step
    the same draw; here each has its own.

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


# The weight of a relative PriorPenalty under which Levenberg-Marquardt came from the prior's mean
# to the right latent for each of 32 digits of a 100-dimensional generator.
_EARLY_WEIGHT = 1.0
# A mean squared error at or below this is the generator's own rounding.
_EXACT_MSE = 1e-10


def precise(manifest: Manifest, *, start: str = "mean") -> Recipe:
    """Levenberg-Marquardt from the prior's mean: for images that this very generator made.

    Args:
        manifest: the bundle's, which must hold the normal equations of "whitened" or of "mse",
            unless its latent has more than 512 components, or the recipe is L-BFGS (see ``start``).
        start: where the first attempt begins, see ``Recipe``. From "encoder", where the bundle has
            no loss "whitened", the recipe is that of ``reconstruct`` from there, with an end: the
            solver is ``LBFGS``, which needs the objective alone, and up to twenty restarts hop.

    The loss is "whitened" where the bundle has it: the residual before the generator's final tanh
    or sigmoid, so that pixels near the ends of the value range count as much as others; of those
    within 1e-4 of an end it asks no more than that. A penalty
    in proportion to the loss keeps the latent probable on the way and vanishes at an exact latent;
    a uniform prior is kept by clipping as well. The steps go on until the loss stops falling, at
    the rounding of the image, and a last stage without penalty tells whether that is an exact
    latent: a whitened loss at or below 1e-8, or an mse at or below 1e-10. If not, the target is
    tried again from a draw, at most ten times. For images that the generator did not make, whose
    loss never falls so far, use ``reconstruct``.

    A latent of more than 512 components is too long for normal equations: there the solver is
    ``LBFGS``, which needs the objective alone, and an attempt takes up to 1,500 of its steps.

    Raises:
        BundleError: the recipe needs normal equations that the bundle does not have; the message
            says how to get them.

    Source: ours. See ``LevenbergMarquardt`` and ``PriorPenalty`` for what it is made of; what each
    part contributes was measured, see docs/recovery.md.
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
    stage = Stage(solver, _kept_by(manifest.prior), loss=loss)
    penalties = (PriorPenalty(_EARLY_WEIGHT, relative=True),)
    seek = dataclasses.replace(stage, penalties=penalties, loss_tolerance=1e-12, **ends)
    tolerance = 1e-8 if loss == "whitened" else _EXACT_MSE
    # It ends with the first step that helps, or when none does: stalled, were it not exact.
    tell = dataclasses.replace(
        stage, max_steps=20, loss_tolerance=tolerance, relative_change_tolerance=1.0
    )
    return Recipe("precise", (seek, tell), restarts=10, start=start)


def reconstruct(manifest: Manifest, noise: float | None = None, *, start: str = "mean") -> Recipe:
    r"""The most probable latent for the pixels: for photographs and noisy images.

    Args:
        manifest: the bundle's, which must hold the normal equations of "mse" unless the start is
            "encoder".
        noise: standard deviation s of the noise on each of the P pixel values, in the bundle's
            value range, above 0. None: not known, and estimated with the latent.
        start: where the first attempt begins, see ``Recipe``. From "encoder" the solver is
            ``LBFGS``, which needs the objective alone: near an optimum its many cheap steps go
            further than the few costly ones of ``LevenbergMarquardt``.

    Under a normal prior the result is the maximum a posteriori latent. With
    $y = (z - \text{mean}) / \text{std}$ and Gaussian noise,

    $$
    -\log p(z, s \mid x) = \frac{P}{2 s^2} \text{mse}(z) + P \log s
    + \frac{1}{2} \lVert y \rVert^2 + \text{const}
    $$

    For a known s, times $2 s^2 / P$, this is
    $\text{mse} + \frac{s^2}{P} \lVert y \rVert^2$, which is a ``PriorPenalty`` of weight
    $2 s^2 d / P$. For an unknown one it is least over s at $s^2 = \text{mse}(z)$. What
    is left, $\frac{P}{2} \log \text{mse}(z) + \frac{1}{2} \lVert y \rVert^2$, is what a
    relative ``PriorPenalty`` of weight $2 d / P$ minimises. Both weights are small, so,
    unless an encoder does, a first stage with the larger relative penalty of ``precise`` finds
    where to begin.

    A uniform prior counts as the normal one of its moments, within its bounds: see
    ``PriorPenalty``.

    An attempt's last latent is kept: one of lower loss from the way there would be less probable.
    The optimum that the first attempt ends in often has better ones nearby, which eight hops of the
    last stage look for; the most probable one is kept.

    Raises:
        BundleError: the start is not "encoder", and the bundle has no such normal equations; the
            message says how to get them.
        InputError: noise out of its range.

    Source: ours; the maximum a posteriori estimate is textbook material.
    """
    noise = noise_level(noise)
    share = 2 * manifest.latent_size / manifest.image_size
    final = PriorPenalty(share, relative=True) if noise is None else PriorPenalty(share * noise**2)
    settle = Stage(
        LevenbergMarquardt(),
        _kept_by(manifest.prior),
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


def _kept_by(prior: Prior) -> Constraint:
    return Clip() if isinstance(prior, Uniform) else NoConstraint()


RECIPES: dict[str, Callable[[Manifest], Recipe]] = {
    "default": default,
    "lipton": lipton,
    "creswell": creswell,
    "egan": egan,
    "precise": precise,
    "reconstruct": reconstruct,
}
"""Every named recipe: its name, and what makes it for a bundle's manifest."""


def get(name: str, manifest: Manifest, *, start: str | None = None) -> Recipe:
    """Return the named recipe for a bundle.

    Args:
        name: one of ``RECIPES``.
        manifest: the bundle's.
        start: where first attempts begin, see ``Recipe``; None leaves it to the recipe. "precise"
            and "reconstruct" differ by more than that with "encoder".

    Raises:
        RuleError: no recipe has this name; the message lists those there are.
        BundleError: the bundle lacks a function that the recipe needs.
    """
    if name not in RECIPES:
        raise RuleError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    if start is None:
        return RECIPES[name](manifest)
    if name == "precise":
        return precise(manifest, start=start)
    if name == "reconstruct":
        return reconstruct(manifest, start=start)
    return RECIPES[name](manifest).replace(start=start)


def _names(cls: type[Rule]) -> list[str]:
    return [field.name for field in fields(cls)]  # type: ignore[arg-type]
