"""Rules as data: what they accept, how they describe themselves, which prior they fit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pyinv import recipes
from pyinv._rule import from_description
from pyinv.constraints import (
    CONSTRAINTS,
    Clip,
    HardCutoff,
    LogisticCutoff,
    NoConstraint,
    StochasticClip,
    TruncatedNormalCutoff,
    parse_constraint,
)
from pyinv.errors import BundleError, InputError, PyinvError, RuleError
from pyinv.penalties import MomentPenalty, PriorPenalty
from pyinv.priors import Normal, Uniform, prior_from_description
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import (
    LBFGS,
    SOLVERS,
    Adam,
    Constant,
    Cosine,
    GradientDescent,
    LevenbergMarquardt,
    RMSprop,
    StepDecay,
)
from support.manifests import manifest

ADAM = {"kind": "adam", "learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
CONSTANT = {"kind": "constant"}

DESCRIPTIONS = [
    (Uniform(), {"kind": "uniform", "low": -1.0, "high": 1.0}),
    (Normal(1, 2), {"kind": "normal", "mean": 1.0, "std": 2.0}),
    (NoConstraint(), {"kind": "no_constraint"}),
    (Clip(), {"kind": "clip", "low": None, "high": None}),
    (StochasticClip(-2, 2), {"kind": "stochastic_clip", "low": -2.0, "high": 2.0}),
    (HardCutoff(3), {"kind": "hard_cutoff", "c": 3.0}),
    (LogisticCutoff(2, 2.5), {"kind": "logistic_cutoff", "a": 2.0, "b": 2.5, "horizon": None}),
    (TruncatedNormalCutoff(3, 9), {"kind": "truncated_normal_cutoff", "a": 3.0, "horizon": 9}),
    (
        GradientDescent(1, schedule=StepDecay(10, 0.5)),
        {
            "kind": "gradient_descent",
            "learning_rate": 1.0,
            "momentum": 0.0,
            "schedule": {"kind": "step_decay", "every": 10, "factor": 0.5},
        },
    ),
    (Adam(0.1), {**ADAM, "schedule": CONSTANT}),
    (
        LevenbergMarquardt(),
        {"kind": "levenberg_marquardt", "damping": 1e-3, "up": 4.0, "down": 0.25},
    ),
    (
        LBFGS(),
        {"kind": "lbfgs", "history": 20, "first_step": 0.3, "preconditioned": True},
    ),
    (Cosine(), {"kind": "cosine", "final": 0.0}),
    (
        MomentPenalty(),
        {"kind": "moment_penalty", "gamma_mean": 1.0, "gamma_std": 1.0, "over": "batch"},
    ),
    (
        PriorPenalty(1, anneal=True),
        {"kind": "prior_penalty", "weight": 1.0, "anneal": True, "relative": False},
    ),
    (
        PriorPenalty(2, relative=True),
        {"kind": "prior_penalty", "weight": 2.0, "anneal": False, "relative": True},
    ),
    (
        Stage(Adam(0.1), penalties=[PriorPenalty(0.5)]),
        {
            "kind": "stage",
            "solver": {**ADAM, "schedule": CONSTANT},
            "constraint": {"kind": "no_constraint"},
            "penalties": [
                {"kind": "prior_penalty", "weight": 0.5, "anneal": False, "relative": False}
            ],
            "loss": "mse",
            "max_steps": 1000,
            "loss_tolerance": 0.0,
            "change_tolerance": 0.0,
            "relative_change_tolerance": 0.0,
            "patience": 1,
            "reset_moments": True,
        },
    ),
    (
        Recipe("mine", Stage(LevenbergMarquardt(0.1, 2, 0.5)), start="mean"),
        {
            "kind": "recipe",
            "name": "mine",
            "stages": [Stage(LevenbergMarquardt(0.1, 2, 0.5)).describe()],
            "restarts": 0,
            "keep": "best",
            "start": "mean",
            "hop_size": 0.0,
        },
    ),
]


@pytest.mark.parametrize(("rule", "described"), DESCRIPTIONS)
def test_rule_describes_itself_as_json(rule, described):
    assert rule.describe() == described
    assert json.loads(json.dumps(rule.describe())) == described


@pytest.mark.parametrize("prior", [Uniform(0, 2), Normal(1, 3)])
def test_prior_comes_back_from_its_description(prior):
    assert prior_from_description(prior.describe()) == prior


@pytest.mark.parametrize(
    "solver",
    [
        GradientDescent(0.1),
        Adam(0.1),
        LevenbergMarquardt(0.5, 3, 0.1),
        LBFGS(7, 0.2),
        RMSprop(0.1, 0.5, 1e-3, 0.9),
    ],
    ids=str,
)
def test_solver_comes_back_from_its_description(solver):
    described = {k: v for k, v in solver.describe().items() if k != "schedule"}
    assert from_description(described, SOLVERS, "solver") == solver


WRONG = [
    (lambda: Uniform(1, 1), "low must be below high, got 1 and 1"),
    (lambda: Uniform(float("nan")), "low must be a finite number"),
    (lambda: Normal(std=0), "std must be a finite number and > 0, got 0"),
    (lambda: Normal(std=1e-60), "std must be a finite number and > 0 in float32, got 1e-60"),
    (lambda: Normal(1e39), "mean must be a finite number in float32, got 1e+39"),
    (lambda: Uniform(-1e300), "low must be a finite number in float32, got -1e+300"),
    (lambda: Uniform(1, 1 + 1e-9), "low must be below high in float32, got 1 and 1"),
    (lambda: Clip(1, 1 + 1e-9), "low must be below high in float32, got 1 and 1"),
    (lambda: HardCutoff(1e-60), "c must be a finite number and > 0 in float32"),
    (lambda: GradientDescent(1e39), "learning_rate must be a finite number and > 0 in float32"),
    (lambda: Adam(0.1, epsilon=1e-60), "epsilon must be a finite number and > 0 in float32"),
    (lambda: PriorPenalty(1e39), "weight must be a finite number and >= 0 in float32"),
    (lambda: Clip(2, 1), "low must be below high"),
    (lambda: HardCutoff(-1), "c must be a finite number and > 0"),
    (lambda: LogisticCutoff(0, 2), "a must be"),
    (lambda: LogisticCutoff(2, 2, horizon=0), "horizon must be a whole number >= 1"),
    (lambda: TruncatedNormalCutoff("3"), "a must be a finite number and > 0, got '3'"),
    (lambda: GradientDescent(0), "learning_rate must be a finite number and > 0, got 0"),
    (lambda: GradientDescent(1, momentum=1), "momentum must be"),
    (lambda: Adam(True), "learning_rate must be"),
    (lambda: Adam(0.1, beta2=1.0), "beta2 must be a finite number and >= 0 and < 1, got 1.0"),
    (lambda: Adam(0.1, epsilon=0), "epsilon must be"),
    (lambda: Adam(0.1, schedule=None), "schedule must be one of Constant"),
    (lambda: RMSprop(0), "learning_rate must be"),
    (lambda: RMSprop(alpha=1), "alpha must be a finite number and >= 0 and < 1, got 1"),
    (lambda: RMSprop(epsilon=0), "epsilon must be"),
    (lambda: RMSprop(momentum=1), "momentum must be"),
    (lambda: RMSprop(schedule=None), "schedule must be one of Constant"),
    (lambda: StepDecay(0, 0.5), "every must be a whole number >= 1, got 0"),
    (lambda: StepDecay(1.5, 0.5), "every must be a whole number >= 1, got 1.5"),
    (lambda: StepDecay(1, 2), "factor must be"),
    (lambda: Cosine(2), "final must be"),
    (lambda: LevenbergMarquardt(0), "damping must be a finite number and > 0, got 0"),
    (lambda: LevenbergMarquardt(up=1), "up must be a finite number and > 1, got 1"),
    (lambda: LevenbergMarquardt(up=float("inf")), "up must be a finite number and > 1, got inf"),
    (lambda: LevenbergMarquardt(down=0), "down must be a finite number and > 0 and < 1, got 0"),
    (lambda: LevenbergMarquardt(down=1), "down must be a finite number and > 0 and < 1, got 1"),
    (lambda: LBFGS(0), "history must be a whole number >= 1 and <= 1000, got 0"),
    (lambda: LBFGS(1001), "history must be a whole number >= 1 and <= 1000, got 1001"),
    (lambda: LBFGS(2.5), "history must be a whole number >= 1 and <= 1000, got 2.5"),
    (lambda: LBFGS(first_step=0), "first_step must be a finite number and > 0, got 0"),
    (lambda: MomentPenalty(over="lane"), "over must be one of batch, latent"),
    (lambda: PriorPenalty(-1), "weight must be"),
    (lambda: PriorPenalty(1, anneal=1), "anneal must be True or False"),
    (lambda: PriorPenalty(1, relative=1), "relative must be True or False, got 1"),
    (
        lambda: Stage(Clip()),
        "solver must be one of GradientDescent(...), Adam(...), LevenbergMarquardt(...), "
        "LBFGS(...), RMSprop(...); got",
    ),
    (
        lambda: Stage(LevenbergMarquardt(), penalties=(MomentPenalty(over="latent"),)),
        "LevenbergMarquardt takes no MomentPenalty",
    ),
    (
        lambda: Stage(LBFGS(), penalties=(MomentPenalty(over="latent"),)),
        "LBFGS takes no MomentPenalty",
    ),
    (lambda: Stage(Adam(0.1), constraint="clip"), "constraint must be a constraint"),
    (lambda: Stage(Adam(0.1), penalties=(Clip(),)), "penalties must be a tuple"),
    (lambda: Stage(Adam(0.1), penalties=(PriorPenalty(1),) * 2), "each kind once"),
    (lambda: Stage(Adam(0.1), max_steps=0), "max_steps must be a whole number >= 1"),
    (lambda: Stage(Adam(0.1), loss=""), "loss must be a loss's name"),
    (lambda: Stage(Adam(0.1), loss_tolerance=-1), "loss_tolerance must be"),
    (lambda: Recipe("mine", ()), "stages must be one Stage(...) or more"),
    (lambda: Recipe("mine", (Stage(Adam(0.1)),), restarts=4096), "restarts must be"),
    (lambda: Recipe("mine", (Stage(Adam(0.1)),), keep="first"), "keep must be one of best, last"),
    (lambda: Recipe("mine", (Stage(Adam(0.1), max_steps=2**31),) * 2), "must add up to"),
    (lambda: Recipe("mine", Stage(Adam(0.1)), start="zero"), "start must be one of prior, mean"),
    (lambda: Recipe("mine", Stage(Adam(0.1)), start=np.zeros(2)), "start must be one of prior"),
    (lambda: Recipe("mine", Stage(Adam(0.1)), hop_size=1.1), "hop_size must be a finite number"),
    (lambda: prior_from_description({"kind": "cauchy"}), "unknown prior 'cauchy'"),
    (lambda: prior_from_description({"kind": "normal", "scale": 1}), "no setting 'scale'"),
    (
        lambda: recipes.lipton(manifest(), "soft"),
        "clipping must be one of stochastic, standard, none",
    ),
    (lambda: recipes.get("lipton", manifest(Uniform())).replace(beta1=0), "has no field 'beta1'"),
    (
        lambda: recipes.get("lipton", manifest(Uniform())).replace(learning_rate=-1),
        "learning_rate must be",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_rule_is_refused_in_one_line(make, message):
    with pytest.raises(RuleError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, (PyinvError, ValueError))


UNIFORM, NORMAL = Uniform(-2, 3), Normal()
FITS = [
    (NoConstraint(), UNIFORM, NoConstraint()),
    (NoConstraint(), NORMAL, NoConstraint()),
    (Clip(), UNIFORM, Clip(-2, 3)),
    (Clip(low=-1), UNIFORM, Clip(-1, 3)),
    (Clip(-3, 3), NORMAL, Clip(-3, 3)),
    (Clip(high=3), NORMAL, "has no bounds to take from a normal prior"),
    (StochasticClip(), UNIFORM, StochasticClip(-2, 3)),
    (StochasticClip(-1, 1), NORMAL, "needs a uniform prior"),
    (HardCutoff(3), NORMAL, HardCutoff(3)),
    (HardCutoff(3), UNIFORM, "draws from a normal prior"),
    (LogisticCutoff(2, 2), NORMAL, LogisticCutoff(2, 2, horizon=50)),
    (LogisticCutoff(2, 2, horizon=7), NORMAL, LogisticCutoff(2, 2, horizon=7)),
    (LogisticCutoff(2, 2), UNIFORM, "draws from a normal prior"),
    (TruncatedNormalCutoff(3), NORMAL, TruncatedNormalCutoff(3, horizon=50)),
    (TruncatedNormalCutoff(3), UNIFORM, "draws from a normal prior"),
]


@pytest.mark.parametrize(("constraint", "prior", "expected"), FITS)
def test_constraint_takes_what_it_needs_from_the_prior_or_refuses(constraint, prior, expected):
    recipe = Recipe("mine", Stage(Adam(0.1), constraint=constraint, max_steps=50))
    if isinstance(expected, str):
        with pytest.raises(RuleError, match=expected):
            recipe.fit(prior)
    else:
        assert recipe.fit(prior).stages[0].constraint == expected


@pytest.mark.parametrize("prior", [Normal(), Uniform()], ids=str)
def test_prior_penalty_fits_every_prior(prior):
    recipe = Recipe("mine", Stage(Adam(0.1), penalties=(PriorPenalty(1),)))
    assert recipe.fit(prior) == recipe


def test_lipton_has_the_papers_settings():
    recipe = recipes.lipton(manifest())
    (stage,) = recipe.stages
    assert stage.solver == GradientDescent(1.0, schedule=StepDecay(50_000, 0.5))
    assert (stage.constraint, stage.loss, stage.max_steps) == (StochasticClip(), "mse", 80_000)
    assert recipe.keep == "last"
    assert recipes.lipton(manifest(), "standard").stages[0].constraint == Clip()
    assert recipes.lipton(manifest(), "none").stages[0].constraint == NoConstraint()


def test_creswell_clips_a_uniform_prior_and_penalises_a_normal_one():
    (uniform,) = recipes.creswell(manifest(Uniform())).stages
    (normal,) = recipes.creswell(manifest(Normal())).stages
    assert (uniform.loss, uniform.constraint, uniform.penalties) == ("bce", Clip(), ())
    assert normal.constraint == NoConstraint()
    assert normal.penalties == (MomentPenalty(1.0, 1.0, over="batch"),)
    assert recipes.creswell(manifest(Normal())).couples
    assert not recipes.creswell(manifest(Uniform())).couples


def test_egan_has_the_papers_settings():
    (stage,) = recipes.egan(manifest(), HardCutoff(3)).stages
    assert stage.solver == Adam(0.01, beta1=0.5, beta2=0.999, schedule=Constant())
    assert (stage.max_steps, stage.change_tolerance) == (20_000, 1e-10)
    assert not stage.reset_moments
    fitted = recipes.egan(manifest(), TruncatedNormalCutoff(2.75)).fit(Normal()).stages[0]
    assert fitted.constraint.horizon == 20_000


def test_precise_takes_what_it_can_from_the_bundle():
    for prior, constraint in ((Uniform(), Clip()), (Normal(), NoConstraint())):
        recipe = recipes.get("precise", manifest(prior))
        seek, tell = recipe.stages
        assert recipe.start == "mean"
        assert seek.penalties == (PriorPenalty(1.0, relative=True),)
        # The last stage tells an exact latent from another, by the loss alone.
        assert (tell.penalties, tell.max_steps) == ((), 20)
        assert seek.loss_tolerance < tell.loss_tolerance
        for stage in (seek, tell):
            assert (stage.solver, stage.loss) == (LevenbergMarquardt(), "whitened")
            assert stage.constraint == constraint
    (seek, tell) = recipes.precise(manifest(solved=("mse",))).stages
    assert seek.loss == tell.loss == "mse"
    with pytest.raises(BundleError, match="pyinv export"):
        recipes.precise(manifest(solved=()))


@pytest.mark.parametrize("latent_shape", [(513,), (8, 8, 8, 3)])
def test_precise_does_without_normal_equations_where_the_latent_is_long(latent_shape):
    whitened = manifest(solved=(), losses=("whitened",), latent_shape=latent_shape)
    seek, tell = recipes.get("precise", whitened).stages
    assert (seek.solver, seek.loss, seek.max_steps) == (LBFGS(), "whitened", 1500)
    assert seek.penalties == (PriorPenalty(1.0, relative=True),)
    assert tell.solver == LBFGS()
    seek, _ = recipes.precise(manifest(Uniform(), (), latent_shape=latent_shape)).stages
    assert (seek.solver, seek.loss, seek.constraint) == (LBFGS(), "mse", Clip())
    # Not where they are merely missing.
    with pytest.raises(BundleError, match="pyinv export"):
        recipes.precise(manifest(solved=(), losses=("whitened",), latent_shape=(512,)))


def test_reconstruct_weighs_the_prior_by_the_noise():
    for prior, constraint in ((Uniform(), Clip()), (Normal(), NoConstraint())):
        early, final = recipes.get("reconstruct", manifest(prior)).stages
        assert (early.constraint, final.constraint) == (constraint, constraint)
        assert (early.loss, final.loss) == ("mse", "mse")
        assert early.penalties == (PriorPenalty(1.0, relative=True),)
        assert final.penalties == (PriorPenalty(2 * 10 / 48, relative=True),)
    known = recipes.reconstruct(manifest(Normal()), noise=0.5)
    assert known.stages[0] == early
    assert known.stages[1].penalties == (PriorPenalty(2 * 0.25 * 10 / 48),)
    assert known.keep == "last", "the best loss is not the most probable latent"
    with pytest.raises(BundleError, match="pyinv export"):
        recipes.reconstruct(manifest(solved=("whitened",)))
    for noise in (0, -1, 1e30, float("nan"), "1", True, [0.1], np.array([0.1]), 10**400):
        with pytest.raises(
            InputError, match=r"noise must be a number > 0 and <= 1e.06, the standard"
        ):
            recipes.reconstruct(manifest(), noise=noise)
    assert recipes.reconstruct(manifest(Normal()), noise=np.float32(0.5)) == known


def test_precise_from_an_encoder_needs_gradients_alone_without_a_whitened_loss():
    recipe = recipes.get("precise", manifest(Normal(), solved=()), start="encoder")
    (stage,) = recipe.stages
    assert (recipe.name, recipe.start, recipe.keep) == ("precise", "encoder", "best")
    assert (recipe.restarts, recipe.hop_size) == (20, 0.3)
    assert (stage.solver, stage.loss, stage.loss_tolerance) == (LBFGS(), "mse", 1e-10)
    # Where there is one, the start alone changes.
    whitened = manifest(losses=("mse", "whitened"))
    assert recipes.precise(whitened, start="encoder") == recipes.precise(whitened).replace(
        start="encoder"
    )


def test_reconstruct_from_an_encoder_needs_gradients_alone():
    recipe = recipes.get("reconstruct", manifest(Uniform(), solved=()), start="encoder")
    (stage,) = recipe.stages
    assert (recipe.start, recipe.keep, recipe.restarts) == ("encoder", "last", 8)
    assert (stage.solver, stage.constraint, stage.loss) == (LBFGS(), Clip(), "mse")
    assert stage.penalties == (PriorPenalty(2 * 10 / 48, relative=True),)
    (known,) = recipes.reconstruct(manifest(Normal()), noise=0.5, start="encoder").stages
    assert known.penalties == (PriorPenalty(2 * 0.25 * 10 / 48),)
    drawn = recipes.reconstruct(manifest(), start="prior")
    assert drawn == recipes.reconstruct(manifest()).replace(start="prior")


def test_decoder_starts_at_the_encoder_and_needs_gradients_alone():
    for prior, constraint in ((Uniform(), Clip()), (Normal(), NoConstraint())):
        recipe = recipes.get("decoder", manifest(prior, solved=(), latent_shape=(4, 64, 64)))
        (stage,) = recipe.stages
        assert (recipe.start, recipe.restarts, recipe.keep) == ("encoder", 0, "best")
        assert (stage.solver, stage.constraint, stage.loss) == (LBFGS(), constraint, "mse")
        assert stage.penalties == ()


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_made_for_a_manifest(name):
    recipe = recipes.get(name, manifest(Normal()))
    assert recipe.name == name
    assert getattr(recipes, name)(manifest(Normal())) == recipe


@pytest.mark.parametrize("prior", [Uniform(), Normal()])
def test_default_recipe_fits_every_prior(prior):
    assert recipes.get("default", manifest(prior)).fit(prior).max_steps <= 2000


@pytest.mark.parametrize("prior", [Uniform(), Normal()])
def test_the_efforts_of_the_default_recipe(prior):
    fast, usual, best = (
        recipes.default(manifest(prior), effort=effort) for effort in recipes.EFFORTS
    )
    assert usual == recipes.default(manifest(prior))
    assert fast.restarts < usual.restarts < best.restarts
    assert fast.max_steps < usual.max_steps
    constraint = Clip() if prior == Uniform() else NoConstraint()
    assert {stage.constraint for recipe in (fast, usual, best) for stage in recipe.stages} == {
        constraint
    }
    free = recipes.default(manifest(prior), prior_weight=0)
    assert free.stages[-1].penalties == ()
    assert len(recipes.default(manifest(prior), start="encoder").stages) == 1


def test_the_default_recipe_from_given_latents_has_no_first_stage():
    usual = recipes.get("default", manifest(Normal()))
    found = recipes.get("default", manifest(Normal()), initial=True)
    assert found == usual.replace(stages=usual.stages[1:])


def test_the_default_recipe_of_coupled_targets_is_adam():
    coupled = replace(manifest(Normal(), solved=()), batch_norm="batch")
    recipe = recipes.default(coupled, effort="best")
    assert recipe == recipes.adam(coupled).replace(name="default")
    assert recipe.is_coupled(coupled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effort": "most"}, "effort must be one of fast, default, best; got 'most'"),
        ({"effort": ["fast"]}, "effort must be one of fast, default, best; got "),
        ({"prior_weight": -1}, "PriorPenalty: weight must"),
        ({"prior_weight": np.nan}, "PriorPenalty: weight must"),
        ({"prior_weight": "0.1"}, "PriorPenalty: weight must"),
        ({"prior_weight": None}, "PriorPenalty: weight must"),
    ],
)
@pytest.mark.parametrize("others", [{}, {"effort": "fast"}, {"start": "encoder"}], ids=str)
@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_bad_arguments_of_the_default_recipe(changes, message, others, batch_norm):
    given = replace(manifest(Normal(), solved=()), batch_norm=batch_norm)
    with pytest.raises(RuleError, match=message):
        recipes.default(given, **{**others, **changes})


def test_an_effort_is_for_the_default_recipe():
    with pytest.raises(RuleError, match="effort is for the recipe \"default\", not for 'adam'"):
        recipes.get("adam", manifest(Normal()), effort="best")


def test_unknown_recipe_lists_those_there_are():
    with pytest.raises(RuleError, match=r"'lbfgs'; there are default, adam, .*, egan, precise"):
        recipes.get("lbfgs", manifest(Uniform()))
    with pytest.raises(RuleError, match=r"unknown recipe \['adam'\]; there are default"):
        recipes.get(["adam"], manifest(Uniform()))  # type: ignore[arg-type]


def test_replace_reaches_recipe_stages_and_solvers():
    two = Recipe("two", (Stage(Adam(0.1)), Stage(Adam(0.2), loss="l1", max_steps=5)))
    changed = two.replace(
        restarts=3, max_steps=7, constraint=HardCutoff(3), learning_rate=0.5, beta1=0.0
    )
    assert changed.restarts == 3
    assert [stage.max_steps for stage in changed.stages] == [7, 7]
    assert [stage.loss for stage in changed.stages] == ["mse", "l1"]
    assert {stage.constraint for stage in changed.stages} == {HardCutoff(3)}
    assert {stage.solver for stage in changed.stages} == {Adam(0.5, beta1=0.0)}
    assert two.stages[0] == Stage(Adam(0.1))
    assert two.replace() == two


def test_replace_reaches_the_solvers_that_have_the_field():
    mixed = Recipe("mixed", (Stage(Adam(0.1)), Stage(LevenbergMarquardt())))
    changed = mixed.replace(learning_rate=0.5, damping=0.1, max_steps=9, start="mean")
    assert [stage.solver for stage in changed.stages] == [Adam(0.5), LevenbergMarquardt(0.1)]
    assert [stage.max_steps for stage in changed.stages] == [9, 9]
    assert changed.start == "mean"
    with pytest.raises(RuleError, match=r"has no field 'momentum'.* beta1, .* damping, up, down$"):
        mixed.replace(momentum=0.5)


PARSED = [
    ("none", NoConstraint()),
    ("clip", Clip()),
    ("stochastic-clip", StochasticClip()),
    ("clip:low=-1,high=2.5", Clip(-1, 2.5)),
    ("hard_cutoff: c = 3", HardCutoff(3)),
    ("logistic_cutoff:a=2,b=2,horizon=100", LogisticCutoff(2, 2, 100)),
]


@pytest.mark.parametrize(("text", "constraint"), PARSED)
def test_constraint_is_read_from_text(text, constraint):
    assert parse_constraint(text) == constraint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soft_clip", f"unknown constraint 'soft_clip'; there are {', '.join(CONSTRAINTS)}"),
        (
            "hard_cutoff",
            "hard_cutoff needs a value for 'c'; an example is hard_cutoff:c=3",
        ),
        ("logistic_cutoff:a=2", "needs a value for 'b'; an example is logistic_cutoff:a=3,b=3"),
        (
            "hard_cutoff:3",
            "name=number after the colon, got '3'; an example is hard_cutoff:c=3",
        ),
        ("hard_cutoff:c=x", "expected name=number after the colon, got 'c=x'"),
        ("hard_cutoff:d=3", "constraint hard_cutoff has no setting 'd'; it has c"),
    ],
)
def test_wrong_constraint_text_is_refused(text, message):
    with pytest.raises(RuleError) as error:
        parse_constraint(text)
    assert message in str(error.value)


@pytest.mark.parametrize("value", [10**400, np.zeros(3), np.zeros((0,))])
def test_numbers_that_cannot_be_converted_are_refused(value):
    with pytest.raises(RuleError, match="must be a finite number"):
        Adam(value)
    with pytest.raises(RuleError, match="max_steps must be a whole number"):
        Stage(Adam(0.1), max_steps=value)
