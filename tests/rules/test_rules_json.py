"""The engine reads JSON as RFC 8259 has it, and rules as describe() gives them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pyinv import _core, recipes
from pyinv.constraints import (
    Clip,
    HardCutoff,
    LogisticCutoff,
    NoConstraint,
    StochasticClip,
    TruncatedNormalCutoff,
)
from pyinv.errors import RuleError
from pyinv.penalties import MomentPenalty, PriorPenalty
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import (
    LBFGS,
    Adam,
    Constant,
    Cosine,
    GradientDescent,
    LevenbergMarquardt,
    RMSprop,
    StepDecay,
)
from support.manifests import manifest

# ---- the reader ----------------------------------------------------------------------------------

READABLE = [
    "null",
    "true",
    " false ",
    "0",
    "-0",
    "-0.0",
    "1",
    "-17",
    "1.5",
    "1e3",
    "1E+3",
    "-2.5e-3",
    "5e-324",
    "2.2250738585072014e-308",
    "1.7976931348623157e308",
    "0.1",
    "3.4028234663852886e38",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "123456789012345678901234567890",
    '""',
    '"text"',
    '"\\"\\\\\\/\\b\\f\\n\\r\\t"',
    '"\\u0041\\u00e9\\u20AC\\u0000"',
    '"\\uD83D\\uDE00 \\ud83d\\ude00"',
    '"é€😀\x7f"',
    "[]",
    "[ ]",
    "{}",
    "\t{\r\n} ",
    "[1, [2, [3, []]], {}]",
    '{"a": 1, "": {"b": [null, true]}, "é": "ü"}',
    "[" * 64 + "]" * 64,
    '{"a":' * 64 + "1" + "}" * 64,
]


@pytest.mark.parametrize("text", READABLE)
def test_what_is_json_is_read_as_python_reads_it(text: str) -> None:
    assert_same(_core.parse_json(text), json.loads(text))


def test_what_python_writes_is_read() -> None:
    random = np.random.default_rng(0)
    numbers = random.standard_normal(500) * 10.0 ** random.integers(-300, 300, 500)
    value = {
        "numbers": [*numbers.tolist(), *random.integers(-(2**60), 2**60, 50).tolist()],
        "text": "".join(chr(code) for code in range(0xD800)),
    }
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only, indent=2)
        assert_same(_core.parse_json(text), value)


def assert_same(read: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert list(read) == list(expected)
        for key in expected:
            assert_same(read[key], expected[key])
    elif isinstance(expected, list):
        assert len(read) == len(expected)
        for one, other in zip(read, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, int) and not -(2**63) <= expected < 2**63:
        assert read == float(expected)
    else:
        assert type(read) is type(expected)
        assert read == expected
        if isinstance(expected, float):
            assert math.copysign(1, read) == math.copysign(1, expected)


UNREADABLE = {
    "": "line 1, column 1: expected a value, found the end",
    " \n ": "line 2, column 2: expected a value, found the end",
    "nul": "expected a value, found 'n'",
    "True": "expected a value, found 'T'",
    "[1,]": "column 4: expected a value, found ']'",
    "[1 2]": "column 4: expected ',' or ']', found '2'",
    "[1": "expected ',' or ']', found the end",
    "[1}": "expected ',' or ']', found '}'",
    "{1: 2}": "expected a key in double quotes, found '1'",
    "{'a': 2}": "expected a key in double quotes",
    '{"a" 2}': "expected ':', found '2'",
    '{"a": 1,}': "expected a key in double quotes, found '}'",
    '{"a": 1': "expected ',' or '}', found the end",
    "1 2": "column 3: expected the end, found '2'",
    "[1]]": "expected the end, found ']'",
    "{}\n\n  x": "line 3, column 3: expected the end, found 'x'",
    "+1": "expected a value, found '+'",
    "01": "expected the end, found '1'",
    "-": "expected a digit, found the end",
    ".5": "expected a value, found '.'",
    "1.": "expected a digit, found the end",
    "1e": "expected a digit, found the end",
    "1e+": "expected a digit, found the end",
    "0x10": "expected the end, found 'x'",
    '"a': "expected '\"', found the end",
    '"a\nb"': "expected an escape for this character, found byte 10",
    '"\\x"': "expected one of \"\\/bfnrtu after a backslash, found 'x'",
    '"\\u12"': "expected four hexadecimal digits",
    '"\\u+123"': "expected four hexadecimal digits",
    "\ufeff1": "expected a value",
    "\x00": "expected a value, found byte 0",
    "[1\x0b]": "expected ',' or ']', found byte 11",
}

# RFC 8259 leaves these to the reader; Python lets them through.
REFUSED_HERE = {
    "NaN": "expected a value, found 'N'",
    "[Infinity]": "expected a value, found 'I'",
    "-Infinity": "expected a digit, found 'I'",
    '{"a": 1, "b": 2, "a": 3}': 'column 18: expected each key once, but "a" came before',
    '"\\ud83d"': "expected the second half of a surrogate pair",
    '"\\ud83d\\u0041"': "expected the second half of a surrogate pair",
    '"\\ude00"': "expected the first half of a surrogate pair before",
    "[1e999]": "column 2: expected a number within the range of a double, found '1'",
    "[" * 65 + "]" * 65: "expected at most 64 levels, found '['",
    "[" * 900: "expected at most 64 levels, found '['",
}


@pytest.mark.parametrize(("text", "problem"), UNREADABLE.items(), ids=ascii)
def test_what_is_no_json_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(RuntimeError) as error:
        _core.parse_json(text)
    assert problem in str(error.value)
    assert str(error.value).startswith("line ")


@pytest.mark.parametrize(
    ("text", "problem"), REFUSED_HERE.items(), ids=lambda text: ascii(text)[:40]
)
def test_what_only_python_reads_is_refused(text: str, problem: str) -> None:
    with pytest.raises(RuntimeError) as error:
        _core.parse_json(text)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"\xe0\x80\xaf"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82"',
        b'"\x80"',
    ],
)
def test_text_that_is_not_utf8_is_refused(text: bytes) -> None:
    with pytest.raises(RuntimeError, match="expected UTF-8, found byte"):
        _core.parse_json(text)


# ---- rules ---------------------------------------------------------------------------------------


def read(prior: Any, recipe: Any) -> str:
    """What the engine says of rules: that they are right, but have nothing to run on; or an error.

    What it makes of right ones is for test_engine.py, which runs each kind beside its twin.
    """
    with pytest.raises(ValueError) as error:
        _core.invert(
            objectives=[],
            recipe=recipe if isinstance(recipe, str) else json.dumps(recipe),
            prior=prior if isinstance(prior, str) else json.dumps(prior),
            images=np.zeros((1, 1), np.float32),
            target_ids=np.zeros(1, np.uint64),
            seed=0,
            lanes=1,
        )
    return str(error.value)


RIGHT = "a run needs an objective"

UNIFORM, NORMAL = Uniform(-2.0, 0.5), Normal(0.5, 2.0)

STAGES = [
    (UNIFORM, Stage(GradientDescent(1, momentum=0.5, schedule=Constant()), NoConstraint())),
    (UNIFORM, Stage(Adam(0.1, 0.0, 0.5, 1e-3, StepDecay(3, 1)), Clip())),
    (UNIFORM, Stage(RMSprop(0.1, 0.0, 1e-3, 0.5, StepDecay(3, 1)), Clip())),
    (UNIFORM, Stage(Adam(0.1, schedule=Cosine(1)), StochasticClip(-1))),
    (UNIFORM, Stage(Adam(0.1), penalties=(MomentPenalty(0, 1, "latent"),), patience=2**32 - 1)),
    (NORMAL, Stage(Adam(0.1), Clip(-1, 2), max_steps=2**32 - 1)),
    (NORMAL, Stage(Adam(0.1), HardCutoff(3), loss="l1", reset_moments=False)),
    (NORMAL, Stage(Adam(0.1), LogisticCutoff(2, 0), loss_tolerance=1e-8, change_tolerance=1e-10)),
    (NORMAL, Stage(Adam(0.1), LogisticCutoff(2, 2, 7), relative_change_tolerance=1e-3)),
    (NORMAL, Stage(Adam(0.1), TruncatedNormalCutoff(2.5), (PriorPenalty(0.1), MomentPenalty()))),
    (NORMAL, Stage(Adam(0.1), TruncatedNormalCutoff(2.5, 9), (PriorPenalty(0.1, True),))),
    (NORMAL, Stage(LevenbergMarquardt(), penalties=(PriorPenalty(2, relative=True),))),
    (UNIFORM, Stage(LevenbergMarquardt(1e9, 1.5, 0.999), Clip(), loss="whitened")),
    (NORMAL, Stage(LBFGS(7, 0.2), penalties=(PriorPenalty(2),))),
]


@pytest.mark.parametrize(("prior", "stage"), STAGES, ids=str)
@pytest.mark.parametrize("fitted", [True, False], ids=["fitted", "as written"])
def test_what_describe_gives_is_read(prior, stage, fitted) -> None:
    recipe = Recipe("r", (stage,), restarts=4095, keep="last", start="mean", hop_size=0.3)
    described = (recipe.fit(prior) if fitted else recipe).describe()
    assert read(prior.describe(), described) == RIGHT
    # With a setting more anywhere it is not, so none of those above is passed over in silence.
    for rule in rules_in(described):
        rule["surplus"] = 1
        assert 'has no setting "surplus"' in read(prior.describe(), described)
        del rule["surplus"]


def rules_in(described: Any) -> list[dict[str, Any]]:
    if isinstance(described, list):
        return [rule for item in described for rule in rules_in(item)]
    if isinstance(described, dict):
        return [described, *rules_in(list(described.values()))]
    return []


FLOATS = (-1.0, 0.0, 1e-60, 0.5, 1.0, 1.5, 1e39)
INTEGERS = (-1, 0, 1, 1000, 1001, 2**32 - 1, 2**32)


def with_number(rule: Any, path: tuple[Any, ...], number: float) -> Any:
    """The rule with one of its numbers replaced; the path is of fields and places in tuples."""
    if not path:
        return number
    if isinstance(rule, tuple):
        return tuple(
            with_number(item, path[1:], number) if i == path[0] else item
            for i, item in enumerate(rule)
        )
    return replace(rule, **{path[0]: with_number(getattr(rule, path[0]), path[1:], number)})


def numbers_in(described: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    if isinstance(described, dict | list):
        items = described.items() if isinstance(described, dict) else enumerate(described)
        return [found for key, item in items for found in numbers_in(item, (*path, key))]
    is_number = isinstance(described, int | float) and not isinstance(described, bool)
    return [(path, described)] if is_number else []


@pytest.mark.parametrize(("prior", "stage"), STAGES, ids=str)
def test_python_and_the_engine_take_the_same_numbers(prior, stage) -> None:
    described = stage.describe()
    for path, value in numbers_in(described):
        for number in FLOATS if isinstance(value, float) else INTEGERS:
            try:
                changed = Recipe("r", with_number(stage, path, number)).fit(prior).describe()
                taken = True
            except RuleError:
                changed = {"stages": [json.loads(json.dumps(described))]}
                *owners, name = path
                rule = changed["stages"][0]
                for owner in owners:
                    rule = rule[owner]
                rule[name] = number
                taken = False
            assert (read(prior.describe(), changed) == RIGHT) == taken, (path, number)


FITS = {"lipton": (Uniform,), "egan": (Normal,)}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_named_recipe_is_read(name: str) -> None:
    for kind in FITS.get(name, (Uniform, Normal)):
        recipe = recipes.get(name, manifest(kind())).fit(kind())
        assert read(kind().describe(), recipe.describe()) == RIGHT


@pytest.mark.parametrize("solver", [{"kind": "adam", "learning_rate": 0.1}, {"kind": "rmsprop"}])
def test_what_has_a_default_may_be_left_out(solver) -> None:
    assert read({"kind": "normal"}, {"stages": [{"solver": solver}]}) == RIGHT


def stage_of(**changes: Any) -> dict[str, Any]:
    solver = {"kind": "adam", "learning_rate": 0.1}
    return {"stages": [{"solver": solver, **changes}]}


def damped(stage: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    solver = {"kind": "levenberg_marquardt", **changes}
    return {"stages": [{"solver": solver, **(stage or {})}]}


def solver_of(kind: str = "adam", **changes: Any) -> dict[str, Any]:
    return stage_of(solver={"kind": kind, "learning_rate": 0.1, **changes})


U, N = {"kind": "uniform"}, {"kind": "normal"}
HARD = {"kind": "hard_cutoff", "c": 3}
WRONG = {
    "prior is text": ("", stage_of(), "prior is not JSON: line 1, column 1: expected a value"),
    "recipe is text": (U, "{", "recipe is not JSON: line 1, column 2"),
    "prior is a list": ([], stage_of(), "prior must be an object, got an array"),
    "no kind": ({}, stage_of(), 'prior has no "kind"'),
    "unknown prior": ({"kind": "cauchy"}, stage_of(), "prior.kind must be one of uniform, normal"),
    "bounds": ({"kind": "uniform", "low": 1}, stage_of(), "prior must have its low below its high"),
    "std": ({"kind": "normal", "std": 0}, stage_of(), "prior.std must be a number > 0, got 0"),
    "mean": ({"kind": "normal", "mean": "0"}, stage_of(), 'prior.mean must be a number, got "0"'),
    "std underflows": (
        {"kind": "normal", "std": 1e-60},
        stage_of(),
        "prior.std must be a finite number > 0 in float32, got 1e-60",
    ),
    "low overflows": (
        {"kind": "uniform", "low": -1e300},
        stage_of(),
        "prior.low must be a finite number in float32, got -1e+300",
    ),
    "cutoff underflows": (
        N,
        stage_of(constraint={"kind": "hard_cutoff", "c": 1e-60}),
        "constraint.c must be a finite number > 0 in float32",
    ),
    "weight overflows": (
        N,
        stage_of(penalties=[{"kind": "prior_penalty", "weight": 1e39}]),
        "penalties[0].weight must be a finite number >= 0 in float32",
    ),
    "rate overflows": (U, solver_of(learning_rate=1e39), "learning_rate must be a finite number"),
    "epsilon underflows": (U, solver_of(epsilon=1e-60), "epsilon must be a finite number > 0"),
    "beta rounds to 1": (U, solver_of(beta2=1 - 1e-12), "beta2 must be a finite number >= 0"),
    "no stages": (U, {}, 'recipe has no "stages"'),
    "empty stages": (U, {"stages": []}, "recipe.stages must hold at least one stage"),
    "no solver": (U, {"stages": [{}]}, 'recipe.stages[0] has no "solver"'),
    "restarts": (
        U,
        {**stage_of(), "restarts": 4096},
        "recipe.restarts must be a whole number from 0 to 4095, got 4096",
    ),
    "hop_size": (
        U,
        {**stage_of(), "hop_size": 1.5},
        "recipe.hop_size must be a number >= 0 and <= 1, got 1.5",
    ),
    "keep": (U, {**stage_of(), "keep": "all"}, 'recipe.keep must be one of best, last, got "all"'),
    "steps": (
        U,
        {"stages": [*stage_of(max_steps=2**32 - 1)["stages"], *stage_of()["stages"]]},
        "recipe.stages must make at most 4294967295 steps, makes 4294968295",
    ),
    "max_steps": (U, stage_of(max_steps=0), "recipe.stages[0].max_steps must be a whole number"),
    "a float": (U, stage_of(max_steps=1.0), "max_steps must be a whole number, got 1"),
    "patience": (U, stage_of(patience=True), "patience must be a whole number, got true"),
    "tolerance": (U, stage_of(loss_tolerance=-1), "loss_tolerance must be a number >= 0, got -1"),
    "flag": (U, stage_of(reset_moments=1), "reset_moments must be true or false, got 1"),
    "loss": (U, stage_of(loss=3), "loss must be a text, got 3"),
    "objective": (U, stage_of(objective=-1), "objective must be a whole number from 0"),
    "start": (
        U,
        {**stage_of(), "start": "zero"},
        'recipe.start must be one of prior, mean, encoder, got "zero"',
    ),
    "damping": (U, damped(damping=0), "solver.damping must be a number > 0, got 0"),
    "up": (U, damped(up=1), "solver.up must be a number > 1, got 1"),
    "down": (U, damped(down=1.0), "solver.down must be a number > 0 and < 1, got 1"),
    "another solver's setting": (
        U,
        damped(learning_rate=0.1),
        'has no setting "learning_rate", only damping, up, down',
    ),
    "moments, damped": (
        U,
        damped({"penalties": [{"kind": "moment_penalty", "over": "latent"}]}),
        "penalties must hold no moment_penalty with levenberg_marquardt",
    ),
    "moments over the batch, in another stage": (
        U,
        {
            "stages": [
                *damped()["stages"],
                *stage_of(penalties=[{"kind": "moment_penalty"}])["stages"],
            ]
        },
        "must take each target on its own with levenberg_marquardt",
    ),
    "normal equations": (
        U,
        damped({"normal_equations": -1}),
        "normal_equations must be a whole number from 0",
    ),
    "normal equations, another solver": (
        U,
        stage_of(normal_equations=0),
        'has no setting "normal_equations" without levenberg_marquardt',
    ),
    "relative": (
        N,
        stage_of(penalties=[{"kind": "prior_penalty", "weight": 1, "relative": 1}]),
        "penalties[0].relative must be true or false, got 1",
    ),
    "unknown solver": (
        U,
        solver_of("sgd"),
        "kind must be one of gradient_descent, adam, levenberg_marquardt",
    ),
    "rate": (
        U,
        solver_of(learning_rate=0),
        "recipe.stages[0].solver.learning_rate must be a number > 0, got 0",
    ),
    "no rate": (U, stage_of(solver={"kind": "adam"}), 'solver has no "learning_rate"'),
    "beta": (U, solver_of(beta1=1), "solver.beta1 must be a number >= 0 and < 1, got 1"),
    "momentum": (U, solver_of("gradient_descent", momentum=1.5), "momentum must be a number >= 0"),
    "alpha": (U, solver_of("rmsprop", alpha=1), "alpha must be a number >= 0 and < 1, got 1"),
    "rmsprop's epsilon": (U, solver_of("rmsprop", epsilon=0), "epsilon must be a number > 0"),
    "rmsprop's momentum": (U, solver_of("rmsprop", momentum=1), "momentum must be a number >= 0"),
    "other's setting": (
        U,
        solver_of(momentum=0.5),
        'has no setting "momentum", only learning_rate, beta1, beta2, epsilon, schedule',
    ),
    "no history": (
        U,
        stage_of(solver={"kind": "lbfgs", "history": 0}),
        "solver.history must be a whole number from 1 to 1000, got 0",
    ),
    "first step": (
        U,
        stage_of(solver={"kind": "lbfgs", "first_step": 0}),
        "solver.first_step must be a number > 0, got 0",
    ),
    "lbfgs has no rate": (U, solver_of("lbfgs"), 'no setting "learning_rate", only history, first'),
    "lbfgs, moments": (
        U,
        stage_of(
            solver={"kind": "lbfgs"}, penalties=[{"kind": "moment_penalty", "over": "latent"}]
        ),
        "must hold no moment_penalty with lbfgs; use prior_penalty",
    ),
    "schedule": (U, solver_of(schedule={"kind": "step_decay"}), 'schedule has no "every"'),
    "factor": (
        U,
        solver_of(schedule={"kind": "step_decay", "every": 1, "factor": 0}),
        "schedule.factor must be a number > 0 and <= 1, got 0",
    ),
    "unknown constraint": (U, stage_of(constraint={"kind": "wrap"}), "constraint.kind must be one"),
    "cutoff, uniform": (U, stage_of(constraint=HARD), "hard_cutoff needs a normal one"),
    "stochastic, normal": (
        N,
        stage_of(constraint={"kind": "stochastic_clip"}),
        "constraint must fit the prior: stochastic_clip needs a uniform one",
    ),
    "clip, normal": (N, stage_of(constraint={"kind": "clip"}), 'constraint has no "low"'),
    "clip": (
        U,
        stage_of(constraint={"kind": "clip", "low": 2}),
        "constraint must have its low below its high",
    ),
    "horizon": (
        N,
        stage_of(constraint={"kind": "truncated_normal_cutoff", "a": 1, "horizon": 0}),
        "constraint.horizon must be a whole number from 1",
    ),
    "penalties": (U, stage_of(penalties={}), "penalties must be an array, got an object"),
    "two of a kind": (
        U,
        stage_of(penalties=[{"kind": "moment_penalty"}] * 2),
        "penalties must hold each kind once",
    ),
    "over": (
        U,
        stage_of(penalties=[{"kind": "moment_penalty", "over": "lane"}]),
        "penalties[0].over must be one of batch, latent",
    ),
}


@pytest.mark.parametrize(("prior", "recipe", "problem"), WRONG.values(), ids=WRONG)
def test_wrong_rules_are_refused_with_their_place(prior, recipe, problem: str) -> None:
    message = read(prior, recipe)
    assert problem in message
    assert "\n" not in message


def test_a_prior_alone_is_checked_too() -> None:
    with pytest.raises(ValueError, match=r"prior\.kind must be one of uniform, normal"):
        _core.draw_initial('{"kind": "cauchy"}', 0, np.zeros(1, np.uint64), 0, 1)
