"""How far latents may be from the true ones: against closed forms, and against the truth."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from pyinv.errors import BundleError, DeviceError, InputError, OutOfMemoryError, RunError
from pyinv.inverter import Inverter
from pyinv.priors import Normal, Uniform
from pyinv.recipes import Recipe, Stage
from pyinv.result import Inversion, Status
from pyinv.solvers import Adam
from pyinv.uncertainty import TF32_ROUNDING, Uncertainty, laplace_uncertainty, widened
from support.tiny_bundle import LATENT, TinyGenerator, write_tiny_bundle

NORMAL = Normal(0.3, 0.7)
UNIFORM = Uniform(-2.0, 1.0)
RANGE = (-8.0, 8.0)  # room for a linear generator's images and their noise
QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=20))
PIXELS = 64


def linear(prior, tmp_path, **made):
    """A linear generator's bundle, opened, and the generator."""
    made = {"layers": 1, "tanh": False, "value_range": RANGE, **made}
    generator = write_tiny_bundle(tmp_path, prior=prior, normal_equations=("mse",), **made)
    return Inverter(tmp_path, threads=1), generator


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    return linear(NORMAL, tmp_path_factory.mktemp("normal"))


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    return linear(UNIFORM, tmp_path_factory.mktemp("uniform"))


def draw(prior, count, seed=0):
    random = np.random.default_rng(seed)
    shape = (count, LATENT)
    if isinstance(prior, Uniform):
        return random.uniform(prior.low, prior.high, shape)
    return random.normal(prior.mean, prior.std, shape)


def noisy(generator, latents, noise, seed=1):
    clean = generator(latents)
    return clean + np.random.default_rng(seed).normal(0, noise, clean.shape)


def posterior(generator, images, noise, prior):
    """The mean [N, d] and the covariance [d, d] of a linear generator's latents."""
    jacobian = generator.jacobian(np.zeros((1, LATENT)))[0]
    residual = (images - generator(np.zeros((1, LATENT)))).reshape(len(images), -1)
    information = jacobian.T @ jacobian / noise**2 + np.eye(LATENT) / prior.std**2
    pull = residual @ jacobian / noise**2 + prior.mean / prior.std**2
    covariance = np.linalg.inv(information)
    return pull @ covariance, covariance


def equations(jacobian, residual):
    """What normal equations give, [N, d] and [N, d, d], for a Jacobian [N, P, d]."""
    pixels = jacobian.shape[1]
    gradient = 2 / pixels * np.einsum("npi,np->ni", jacobian, residual)
    gram = 2 / pixels * np.einsum("npi,npj->nij", jacobian, jacobian)
    return gradient.astype(np.float32), gram.astype(np.float32)


def measure(generator, latents, images, prior, **options):
    """The uncertainty without a bundle: its normal equations are made in NumPy."""
    generated = generator(latents)
    residual = (generated - images).reshape(len(latents), -1)
    gradient, gram = equations(generator.jacobian(latents), residual)
    options = {"value_range": RANGE, **options}
    options = {"prior": prior, **options}
    return laplace_uncertainty(latents, images, generated, gradient, gram, **options)


# Closed forms


def test_normal_equations_are_the_jacobians_products(normal):
    inverter, generator = normal
    latents = draw(NORMAL, 7).astype(np.float32)
    images = noisy(generator, latents, 0.1).astype(np.float32)
    loss, gradient, gram = inverter.normal_equations(latents, images, batch_size=3)
    residual = (generator(latents) - images).reshape(7, -1)
    expected = equations(generator.jacobian(latents), residual)
    np.testing.assert_allclose(loss, (residual**2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[0], atol=1e-6)
    np.testing.assert_allclose(gram, expected[1], atol=1e-6)
    value, slope = inverter.evaluate(latents, images)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


@pytest.mark.parametrize("noise", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("prior", [NORMAL, UNIFORM], ids=str)
def test_linear_generator_gives_the_posterior(normal, uniform, prior, noise):
    inverter, generator = normal if prior is NORMAL else uniform
    images = np.clip(noisy(generator, draw(prior, 5), noise), *RANGE)
    mean, covariance = posterior(generator, images, noise, prior)
    expected = np.sqrt(np.diag(covariance))
    # A linear generator's hops come back; but those under a uniform prior stay within its bounds.
    found = inverter.uncertainty(mean, images, noise=noise, n_hops=4 if prior is NORMAL else 0)
    np.testing.assert_allclose(found.standard_error, np.tile(expected, (5, 1)), rtol=1e-4)
    np.testing.assert_allclose(found.noise, noise, rtol=1e-6)
    singular = np.linalg.svd(generator.jacobian(np.zeros((1, LATENT)))[0], compute_uv=False)
    np.testing.assert_allclose(found.condition_number, singular[0] / singular[-1], rtol=1e-4)
    worst = np.sqrt(np.linalg.eigvalsh(covariance)[-1])
    assert (found.identifiable == (worst < prior.std / 2)).all()


@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_a_latent_off_the_posteriors_top_has_its_distance_from_there_as_well(normal, noise):
    inverter, generator = normal
    images = noisy(generator, draw(NORMAL, 5), noise)
    mean, covariance = posterior(generator, images, noise, NORMAL)
    latents = draw(NORMAL, 5, seed=9)
    found = inverter.uncertainty(latents, images, noise=noise)
    expected = np.sqrt(np.diag(covariance) + (latents - mean) ** 2)
    np.testing.assert_allclose(found.standard_error, expected, rtol=1e-4)


def test_prior_adds_nothing_where_the_image_decides(uniform):
    inverter, generator = uniform
    latents = draw(UNIFORM, 5)
    latents[:, 2] = UNIFORM.high  # a component at its bound is like any other
    found = inverter.uncertainty(latents, generator(latents), noise=1e-3)
    jacobian = generator.jacobian(latents)[0]
    expected = 1e-3 * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    np.testing.assert_allclose(found.standard_error, np.tile(expected, (5, 1)), rtol=1e-3)
    assert found.identifiable.all()


def test_image_that_tells_nothing_leaves_the_prior(uniform):
    inverter, generator = uniform
    latents = np.full((2, LATENT), UNIFORM.mean)
    latents[1, 2] = UNIFORM.high
    found = inverter.uncertainty(latents, generator(latents), noise=1e4)
    spread = 3 / np.sqrt(12)
    np.testing.assert_allclose(found.standard_error[0], spread, rtol=1e-5)
    # From a bound, the truth is on one side.
    np.testing.assert_allclose(found.standard_error[1, 2], np.hypot(spread, 1.5), rtol=1e-5)
    assert not found.identifiable.any()
    assert np.isfinite(found.condition_number).all()


def test_tanh_generators_pixels_count_by_their_slopes(tmp_path):
    generator = write_tiny_bundle(
        tmp_path, layers=1, prior=Normal(), normal_equations=("mse",), seed=3
    )
    latents = draw(Normal(), 4).astype(np.float32)
    found = Inverter(tmp_path, threads=1).uncertainty(latents, generator(latents), noise=0.02)
    for row, jacobian in enumerate(generator.jacobian(latents)):
        covariance = np.linalg.inv(jacobian.T @ jacobian / 0.02**2 + np.eye(LATENT))
        # The image is the latent's own: the image pulls nowhere, the prior to its mean.
        step = -covariance @ latents[row]
        expected = np.sqrt(np.diag(covariance) + step**2)
        np.testing.assert_allclose(found.standard_error[row], expected, rtol=1e-3)


# Against the truth

COUNT = 3000  # the share of 18,000 components is good to 0.2 %


@pytest.mark.parametrize("known", [True, False], ids=["known noise", "estimated noise"])
@pytest.mark.parametrize(
    ("prior", "noise"),
    [(NORMAL, 0.1), (NORMAL, 1.5), (UNIFORM, 0.1), (UNIFORM, 0.5), (UNIFORM, 3.0)],
    ids=str,
)
def test_95_percent_intervals_cover_95_percent(normal, prior, noise, known):
    _, generator = normal
    truth = draw(prior, COUNT)
    images = noisy(generator, truth, noise)
    latents, _ = posterior(generator, images, noise, prior)
    options = {"noise": noise if known else None, "value_range": (-99.0, 99.0)}
    found = measure(generator, latents, images, prior, **options)
    covered = np.abs(latents - truth) < 1.96 * found.standard_error
    assert 0.93 < covered.mean() < 0.97


def test_standard_error_is_the_root_mean_square_error_of_any_latent(normal):
    _, generator = normal
    truth = draw(NORMAL, COUNT)
    images = noisy(generator, truth, 1.0)
    latents = draw(NORMAL, COUNT, seed=5)  # not even near
    found = measure(generator, latents, images, NORMAL, noise=1.0)
    ratio = np.mean((latents - truth) ** 2) / np.mean(found.standard_error.astype(float) ** 2)
    assert abs(ratio - 1) < 0.03


@pytest.mark.parametrize("noise", [0.1, 0.5, 3.0])
def test_least_squares_within_bounds_is_covered(normal, noise):
    """What recipes find under a uniform prior: at a bound where the noise carried it beyond."""
    _, generator = normal
    truth = draw(UNIFORM, COUNT)
    images = noisy(generator, truth, noise)
    jacobian = generator.jacobian(np.zeros((1, LATENT)))[0]
    latents = (images - generator(np.zeros((1, LATENT)))).reshape(COUNT, -1)
    latents = np.clip(latents @ np.linalg.pinv(jacobian).T, UNIFORM.low, UNIFORM.high)
    found = measure(generator, latents, images, UNIFORM, value_range=(-99.0, 99.0))
    covered = np.abs(latents - truth) < 1.96 * found.standard_error
    assert 0.93 < covered.mean() < 0.98
    ratio = np.mean((latents - truth) ** 2) / np.mean(found.standard_error.astype(float) ** 2)
    assert abs(ratio - 1) < 0.1


# The second noise leaves some directions to the prior: fewer degrees of freedom are used up.
@pytest.mark.parametrize(("prior", "noise"), [(NORMAL, 0.1), (NORMAL, 3.0), (UNIFORM, 0.1)])
def test_estimated_noise_is_unbiased(normal, prior, noise):
    _, generator = normal
    images = noisy(generator, draw(prior, COUNT), noise)
    latents, _ = posterior(generator, images, noise, prior)
    found = measure(generator, latents, images, prior, value_range=(-99.0, 99.0))
    # One estimate has a relative error of sqrt(2 / 58), their mean 0.0034.
    assert abs(np.mean(found.noise.astype(float) ** 2) / noise**2 - 1) < 0.014


def test_estimated_noise_is_right_where_pixels_were_clipped():
    generator = TinyGenerator.make(layers=1, seed=3)
    generator.weights["W2"] *= 3  # many pixels near the ends of the range
    truth = draw(Normal(), COUNT)
    images = np.clip(noisy(generator, truth, 0.1), -1, 1)
    found = measure(generator, truth, images, Normal(), value_range=(-1.0, 1.0))
    estimates = found.noise.astype(float) ** 2 * (PIXELS - LATENT) / PIXELS  # nothing was fitted
    assert abs(estimates.mean() / 0.1**2 - 1) < 0.02
    plain = np.mean((images - generator(truth)) ** 2)
    assert plain < 0.9 * 0.1**2  # what clipping does to an estimate that does not look at it


def test_noise_is_never_below_rounding(normal):
    _, generator = normal
    latents = draw(NORMAL, 3)
    found = measure(generator, latents, generator(latents), NORMAL)
    np.testing.assert_allclose(found.noise, 8 * 2.0**-24)
    assert (found.standard_error > 0).all()
    found = measure(generator, latents, generator(latents), NORMAL, noise=1e-30)
    np.testing.assert_allclose(found.noise, 8 * 2.0**-24)


# Singular and ill-conditioned


def with_columns(change):
    """A linear generator whose weights [d, P] were changed."""
    generator = TinyGenerator.make(layers=1, tanh=False)
    change(generator.weights["W2"])
    return generator


def test_dead_component_is_not_identifiable_and_keeps_its_priors_spread():
    def kill(weights):
        weights[1] = 0

    generator = with_columns(kill)
    latents = draw(NORMAL, 3)
    latents[:, 1] = NORMAL.mean
    found = measure(generator, latents, noisy(generator, latents, 1e-4), NORMAL)
    assert np.isinf(found.condition_number).all()
    assert not found.identifiable.any()
    np.testing.assert_allclose(found.standard_error[:, 1], NORMAL.std, rtol=1e-5)
    assert (np.delete(found.standard_error, 1, axis=1) < 1e-3).all()


def test_saturated_image_says_nothing(tmp_path):
    generator = TinyGenerator.make(layers=1)
    generator.weights["b2"][:] = 40
    write_tiny_bundle(
        tmp_path, generator=generator, prior=Normal(), normal_equations=("mse",), layers=1
    )
    latents = np.zeros((2, LATENT), dtype=np.float32)
    found = Inverter(tmp_path, threads=1).uncertainty(latents, np.ones((2, 1, 8, 8)))
    np.testing.assert_array_equal(found.standard_error, 1)
    np.testing.assert_array_equal(found.condition_number, np.inf)
    assert not found.identifiable.any()


@pytest.mark.parametrize(("apart", "determined"), [(3e-2, True), (1e-6, False)])
def test_nearly_parallel_components(apart, determined):
    def align(weights):
        weights[1] = weights[0] + apart * weights[1]

    generator = with_columns(align)
    latents = np.full((1, LATENT), NORMAL.mean)
    images = noisy(generator, latents, 1e-4)
    found = measure(generator, latents, images, NORMAL, noise=1e-4)
    singular = np.linalg.svd(generator.jacobian(latents)[0], compute_uv=False)
    assert found.identifiable[0] == determined
    if determined:
        np.testing.assert_allclose(found.condition_number, singular[0] / singular[-1], rtol=1e-2)
        assert found.standard_error.max() < 0.01
    else:  # only the sum of the two is known: half of the variance is left in each
        assert np.isinf(found.condition_number[0])
        np.testing.assert_allclose(found.standard_error[0, :2], NORMAL.std / 2**0.5, rtol=1e-3)
        assert (found.standard_error[0, 2:] < 0.01).all()


def test_tf32_hides_smaller_singular_values():
    def align(weights):
        weights[1] = weights[0] + 3e-2 * weights[1]

    generator = with_columns(align)
    latents = np.full((1, LATENT), NORMAL.mean)
    images = generator(latents)
    assert measure(generator, latents, images, NORMAL).identifiable[0]
    coarse = measure(generator, latents, images, NORMAL, rounding=TF32_ROUNDING)
    assert not coarse.identifiable[0]
    np.testing.assert_allclose(coarse.noise, 8 * 2.0**-11)


def test_rounding_errors_along_a_null_direction_are_no_step():
    def kill(weights):
        weights[1] = 0

    generator = with_columns(kill)
    latents = np.full((1, LATENT), NORMAL.mean)
    gradient, gram = equations(generator.jacobian(latents), np.zeros((1, PIXELS)))
    gradient[0, 1] = 1e-9
    images = generator(latents)
    found = laplace_uncertainty(
        latents, images, None, gradient, gram, prior=NORMAL, value_range=RANGE, noise=1e-7
    )
    np.testing.assert_allclose(found.standard_error[0, 1], NORMAL.std, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_that_is_not_finite_is_unknown_and_harms_no_other(normal, value):
    _, generator = normal
    latents = draw(NORMAL, 3)
    images = noisy(generator, latents, 0.1)
    residual = (generator(latents) - images).reshape(3, -1)
    gradient, gram = equations(generator.jacobian(latents), residual)
    gram[1, 2, 3] = value
    found = laplace_uncertainty(
        latents, images, generator(latents), gradient, gram, prior=NORMAL, value_range=RANGE
    )
    whole = measure(generator, latents, images, NORMAL)
    for name, values in found.arrays().items():
        np.testing.assert_array_equal(values[[0, 2]], getattr(whole, name)[[0, 2]], err_msg=name)
    assert np.isnan(found.standard_error[1]).all()
    assert np.isnan(found.condition_number[1])
    assert not found.identifiable[1]


# Other optima


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A generator that does not see its components' signs: 64 latents make the same image."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from pyinv.export import export

    class Folded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(LATENT, PIXELS)

        def forward(self, latent):
            return self.layer(latent * latent).view(-1, 1, 8, 8)

    path = tmp_path_factory.mktemp("folded") / "folded.bundle"
    export(Folded(), path, latent_shape=LATENT, prior=Normal(), value_range=RANGE, losses=("mse",))
    return Inverter(path, threads=1)


@pytest.mark.parametrize("known", [True, False], ids=["known noise", "estimated noise"])
def test_latents_that_make_the_same_image_widen_the_intervals(folded, known):
    truth = np.random.default_rng(0).uniform(0.5, 1.5, (8, LATENT))
    images = folded.generate(truth.astype(np.float32))
    images += np.random.default_rng(1).normal(0, 0.01, images.shape).astype(np.float32)
    noise = 0.01 if known else None
    latents = folded.invert(images, recipe="reconstruct", noise=noise, init=truth).latents
    alone = folded.uncertainty(latents, images, noise=noise, n_hops=0)
    assert alone.identifiable.all()
    assert (alone.standard_error < 0.1).all()
    wide = folded.uncertainty(latents, images, noise=noise, n_hops=64)
    assert not wide.identifiable.any()
    # Of a share p of the hops, a component comes back with the other sign: 2 |z| away.
    flipped = (wide.standard_error**2 - alone.standard_error**2) / (2 * latents) ** 2
    assert 0.15 < flipped.mean() < 0.5  # half, were all hops whole draws
    assert (flipped > 0.05).all()
    assert (flipped < 0.7).all()
    np.testing.assert_allclose(64 * flipped, np.round(64 * flipped), atol=0.25)
    np.testing.assert_array_equal(wide.noise, alone.noise)
    np.testing.assert_array_equal(wide.condition_number, alone.condition_number)


def test_optima_that_agree_make_a_mixture():
    prior, noise, pixels = Normal(0.5, 2.0), 0.1, 50
    found = Uncertainty(
        standard_error=np.full((4, 2), 0.25, dtype=np.float32),
        condition_number=np.full(4, 3.0, dtype=np.float32),
        identifiable=np.array([True, True, True, False]),
        noise=np.full(4, noise, dtype=np.float32),
    )
    latents = np.full((4, 2), 0.5)
    others = np.full((4, 3, 2), 0.5)
    others[0] = [[2.5, 0.5], [0.5, 2.5], [50.0, 0.5]]  # 1/2 for y^2 = 1; the last far too many
    errors = np.full((4, 3, 2), 0.5)
    errors[0] = [[2.0, 0.3], [0.4, 2.1], [50.0, 0.3]]
    # Half of 5.99, the chi-squared quantile, and 0.5 of it for the prior.
    allowed = (5.99 - 1) * noise**2 / pixels
    losses = np.full(4, 0.02)
    other_losses = np.full((4, 3), 0.02)
    other_losses[0] += [0.98 * allowed, -0.01, 0.0]
    other_losses[1] += 6.1 * noise**2 / pixels
    other_losses[2] = [np.nan, np.inf, 0.02]
    errors[3, :2] = [[np.nan, 1.0], [np.inf, 1.0]]
    wide = widened(found, latents, losses, others, other_losses, errors, pixels=pixels, prior=prior)
    mixed = np.sqrt([(2.0**2 + 0.4**2) / 2, (0.3**2 + 2.1**2) / 2])
    np.testing.assert_allclose(wide.standard_error, [mixed, [0.25] * 2, [0.5] * 2, [0.5] * 2])
    # They are 2.8 apart, which is a standard deviation of 1.4, and half of the prior's is 1.
    np.testing.assert_array_equal(wide.identifiable, [False, True, True, False])
    other_losses[0, 0] += 0.04 * allowed
    narrower = widened(
        found, latents, losses, others, other_losses, errors, pixels=pixels, prior=prior
    )
    np.testing.assert_allclose(narrower.standard_error[0], [0.4, 2.1])
    assert narrower.identifiable[0]


# Of an inversion


@pytest.fixture(scope="module")
def targets(normal):
    return noisy(normal[1], draw(NORMAL, 5), 0.1).astype(np.float32)


NAMES = ("standard_error", "condition_number", "identifiable", "noise")


@pytest.fixture(scope="module")
def inversion(normal, targets):
    return normal[0].invert(targets, recipe=QUICK)


@pytest.fixture(scope="module")
def known(normal, targets, inversion):
    return normal[0].uncertainty(inversion, targets)


def test_that_of_an_inversion_is_that_of_its_latents(normal, targets, inversion, known):
    expected = normal[0].uncertainty(inversion.latents, targets, batch_size=2)
    assert known.standard_error.shape == inversion.latents.shape
    for name, values in expected.arrays().items():
        assert getattr(known, name).dtype == values.dtype
        np.testing.assert_allclose(getattr(known, name), values, rtol=1e-4, err_msg=name)
    assert not known.cancelled
    given = normal[0].uncertainty(inversion, targets, noise=0.2)
    np.testing.assert_allclose(given.noise, 0.2)


def test_hops_take_the_inversions_seed(folded):
    images = folded.generate(folded.sample(5))
    found = folded.invert(images, recipe=QUICK, seed=2)
    of_inversion, same, other = (
        folded.uncertainty(latents, images, noise=0.1, **seed).standard_error
        for latents, seed in ((found, {}), (found.latents, {"seed": 2}), (found, {"seed": 3}))
    )
    np.testing.assert_allclose(of_inversion, same, rtol=1e-3)
    assert np.abs(other / same - 1).max() > 0.01


def test_an_inversion_of_other_targets_is_refused(normal, targets, inversion):
    with pytest.raises(InputError, match="got 5 rows; give one row per target"):
        normal[0].uncertainty(inversion, targets[:3])


def test_standard_error_has_the_latents_shape(tmp_path, targets):
    inverter, _ = linear(NORMAL, tmp_path, latent_shape=(2, 3, 1))
    found = inverter.invert(targets, recipe=QUICK)
    for latents in (found, found.latents):
        assert inverter.uncertainty(latents, targets).standard_error.shape == (5, 2, 3, 1)
    assert inverter.normal_equations(found.latents, targets)[1].shape == (5, 2, 3, 1)


def test_condition_reaches_the_normal_equations(tmp_path):
    inverter, generator = linear(NORMAL, tmp_path, condition_size=2)
    latents = draw(NORMAL, 3).astype(np.float32)
    condition = np.eye(3, 2, dtype=np.float32)
    images = generator(latents, condition).astype(np.float32)
    known = inverter.uncertainty(latents, images, conditions=condition, batch_size=2)
    assert known.noise.max() < 1e-5
    loss, _, _ = inverter.normal_equations(latents, images, conditions=condition, batch_size=2)
    assert loss.max() < 1e-10
    assert inverter.uncertainty(latents, images, conditions=condition[::-1]).noise.max() > 1e-2
    found = inverter.invert(images, recipe=QUICK, init=latents, conditions=condition)
    assert inverter.uncertainty(found, images, conditions=condition).noise.max() < 1e-5


def test_uncertainty_comes_back_from_disk_and_is_indexed(inversion, known, tmp_path):
    inversion.save(tmp_path / "a.npz", uncertainty=known)
    known.save(tmp_path / "b.npz")
    for path in (tmp_path / "a.npz", tmp_path / "b.npz"):
        again = Uncertainty.load(path)
        for name in NAMES:
            np.testing.assert_array_equal(getattr(again, name), getattr(known, name))
            part = getattr(known[1:3], name)
            np.testing.assert_array_equal(part, getattr(known, name)[1:3])
    np.testing.assert_array_equal(Inversion.load(tmp_path / "a.npz").latents, inversion.latents)
    assert len(known[-1].standard_error) == 1
    with pytest.raises(IndexError):
        known[5]
    inversion.save(tmp_path / "c.npz")
    with pytest.raises(InputError, match="has no array 'standard_error'"):
        Uncertainty.load(tmp_path / "c.npz")


def test_repr_says_how_many_are_identifiable(known):
    median = np.median(known.standard_error)
    assert f": 5 identifiable; medians: standard error {median:.3g}, noise" in repr(known)


def interrupted(inverter, monkeypatch, error, after=1):
    """Let the normal equations be evaluated so many times, of two targets each."""
    inverter._batch_size = 2
    whole, calls = inverter._session.evaluate, []

    def evaluate(*arguments):
        calls.append(None)
        if len(calls) > after:
            raise error
        return whole(*arguments)

    monkeypatch.setattr(inverter._session, "evaluate", evaluate)


def test_ctrl_c_keeps_what_is_known(tmp_path, targets, monkeypatch):
    inverter, _ = linear(NORMAL, tmp_path)
    latents = inverter.invert(targets, recipe=QUICK)
    interrupted(inverter, monkeypatch, KeyboardInterrupt())
    known = inverter.uncertainty(latents, targets)
    assert known.cancelled
    np.testing.assert_array_equal(np.isnan(known.noise), [False, False, True, True, True])
    assert "5 targets, cancelled: 2 identifiable" in repr(known)


def test_hops_are_made_where_a_target_has_not_converged(folded):
    images = folded.generate(folded.sample(6))
    tolerance = float(np.median(folded.invert(images, recipe=QUICK, seed=3).loss))
    method = Recipe("some", replace(QUICK.stages[0], loss_tolerance=tolerance))
    found = folded.invert(images, recipe=method, seed=3)
    known = folded.uncertainty(found, images, noise=0.1)
    converged = found.status == Status.CONVERGED_TOLERANCE
    assert 0 < converged.sum() < 6
    alone, wide = (
        folded.uncertainty(found.latents, images, noise=0.1, n_hops=n_hops, seed=3).standard_error
        for n_hops in (0, 8)
    )
    assert (np.abs(wide / alone - 1).max(axis=1) > 0.1).all()
    expected = np.where(converged[:, None], alone, wide)
    np.testing.assert_allclose(known.standard_error, expected, rtol=1e-3)


def test_hops_depend_on_a_targets_id_alone(folded):
    images = folded.generate(folded.sample(5))
    found = folded.invert(images, recipe=QUICK, seed=2)
    whole = folded.uncertainty(found, images, noise=0.1)
    part, other = (
        folded.uncertainty(found[3:], images[3:], noise=0.1, target_ids=ids)
        for ids in ([3, 4], [0, 1])
    )
    np.testing.assert_allclose(part.standard_error, whole.standard_error[3:], rtol=1e-3)
    assert np.abs(other.standard_error / part.standard_error - 1).max() > 0.01


def test_ctrl_c_during_hops_leaves_unknown_what_was_not_reached(
    normal, targets, inversion, monkeypatch
):
    inverter, _ = normal
    monkeypatch.setattr("pyinv.uncertainty.search.HOP_BYTES", 1)  # one target at a time
    run, calls = inverter._session.run, []

    def interrupted_run(*arguments, **options):
        calls.append(None)
        found = run(*arguments, **options)
        return {**found, "cancelled": len(calls) == 3}

    monkeypatch.setattr(inverter._session, "run", interrupted_run)
    found = inverter.uncertainty(inversion, targets)
    assert found.cancelled
    known = [True, True, False, False, False]
    np.testing.assert_array_equal(np.isfinite(found.standard_error).all(1), known)
    np.testing.assert_array_equal(found.identifiable, known)


def test_failure_during_hops_keeps_what_is_known(normal, targets, inversion, monkeypatch):
    inverter, _ = normal
    monkeypatch.setattr("pyinv.uncertainty.search.HOP_BYTES", 1)
    run, calls = inverter._session.run, []

    def failing_run(*arguments, **options):
        calls.append(None)
        if len(calls) == 2:
            raise RunError("out of luck")
        return run(*arguments, **options)

    monkeypatch.setattr(inverter._session, "run", failing_run)
    with pytest.raises(
        RunError, match="out of luck; the uncertainty of 1 of 5 targets is known"
    ) as error:
        inverter.uncertainty(inversion, targets)
    known = [True, False, False, False, False]
    np.testing.assert_array_equal(np.isfinite(error.value.uncertainty.noise), known)


def test_the_bar_counts_hops(normal, targets, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    normal[0].uncertainty(draw(NORMAL, 5), targets, n_hops=6, progress=True)
    assert "/30 hops [" in capsys.readouterr().err


def test_progress_function_that_fails_during_hops_keeps_what_is_known(normal, targets, inversion):
    def stop(now):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough") as error:
        normal[0].uncertainty(inversion, targets, progress=stop)
    assert np.isnan(error.value.uncertainty.standard_error).all()


def test_bad_progress_is_refused(normal, targets, inversion):
    with pytest.raises(InputError, match="progress must be None, True or a function"):
        normal[0].uncertainty(inversion, targets, progress="yes")


def test_hops_take_fewer_lanes_where_memory_is_short(normal, targets, monkeypatch):
    inverter, _ = normal
    latents = draw(NORMAL, 5)
    expected = inverter.uncertainty(latents, targets)
    run, tried = inverter._session.run, []

    def short_run(*arguments, lanes, **options):
        tried.append(lanes)
        if lanes > 10:
            raise OutOfMemoryError("no memory")
        return run(*arguments, lanes=lanes, **options)

    monkeypatch.setattr(inverter._session, "run", short_run)
    found = inverter.uncertainty(latents, targets)
    assert tried == [40, 20, 10]
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-4)


def test_hops_report_their_progress(normal, targets, monkeypatch):
    monkeypatch.setattr("pyinv.uncertainty.search.HOP_BYTES", 1)
    seen = []
    normal[0].uncertainty(draw(NORMAL, 5), targets, n_hops=6, progress=seen.append)
    assert {now["targets"] for now in seen} == {30}
    finished = [now["finished"] for now in seen]
    assert finished == sorted(finished)
    assert {0, 6, 12, 18, 24} <= set(finished)


def test_cancelled_targets_are_left_unknown(normal, targets, inversion):
    status = inversion.status.copy()
    status[[0, 3]] = Status.CANCELLED
    latents = inversion.latents.copy()
    latents[0] = np.nan
    found = normal[0].uncertainty(replace(inversion, status=status, latents=latents), targets)
    known = [False, True, True, False, True]
    np.testing.assert_array_equal(np.isfinite(found.standard_error).all(1), known)
    np.testing.assert_array_equal(found.identifiable, known)
    whole = normal[0].uncertainty(inversion, targets)
    np.testing.assert_allclose(found.standard_error[known], whole.standard_error[known], rtol=1e-3)


@pytest.mark.parametrize(
    "failure", [RunError("it broke"), BundleError("it broke"), MemoryError("it broke")], ids=repr
)
def test_failure_keeps_what_is_known(tmp_path, targets, inversion, monkeypatch, failure):
    inverter, _ = linear(NORMAL, tmp_path)
    interrupted(inverter, monkeypatch, failure)
    with pytest.raises(
        RunError, match="it broke; the uncertainty of 2 of 5 targets is known"
    ) as error:
        inverter.uncertainty(inversion, targets)
    assert np.isfinite(error.value.uncertainty.standard_error).sum() == 2 * LATENT


@pytest.mark.parametrize("name", ["normal_equations", "objective"])
def test_functions_that_cannot_be_loaded_are_found_before_any_work(
    tmp_path, targets, monkeypatch, name
):
    inverter, _ = linear(NORMAL, tmp_path)
    load, damaged = inverter._session._load, getattr(inverter.manifest, name)("mse")

    def without(kind, function, **options):
        if function == damaged:
            raise BundleError("they are damaged")
        return load(kind, function, **options)

    monkeypatch.setattr(inverter._session, "_load", without)
    monkeypatch.setattr(inverter._session, "evaluate", lambda *_: pytest.fail("work began"))
    for call in (
        inverter.check_uncertainty,
        lambda: inverter.uncertainty(np.zeros((5, LATENT)), targets),
    ):
        with pytest.raises(BundleError, match="they are damaged"):
            call()


def test_uncertainty_says_what_it_is(normal, targets):
    found = normal[0].uncertainty(np.zeros((5, LATENT)), targets, noise=0.5)
    text = repr(found)
    assert text.startswith("<Uncertainty of 5 targets: ")
    assert "noise 0.5, condition number " in text
    assert "\n" not in text
    assert repr(Uncertainty.unknown(2, (3,))) == "<Uncertainty of 2 targets, none of them known>"


def test_batch_is_halved_until_memory_holds_it(tmp_path, targets, monkeypatch):
    inverter, _ = linear(NORMAL, tmp_path)
    expected = inverter.uncertainty(draw(NORMAL, 5), targets)
    whole, sizes = inverter._session.evaluate, []

    def evaluate(function, rows, *arguments):
        sizes.append(rows.stop - rows.start)
        if sizes[-1] > 2:
            raise DeviceError("no memory")
        return whole(function, rows, *arguments)

    monkeypatch.setattr(inverter._session, "evaluate", evaluate)
    found = inverter.uncertainty(draw(NORMAL, 5), targets)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-4)
    assert min(sizes) == 2
    with pytest.raises(DeviceError):  # nobody's choice is changed in silence
        inverter.uncertainty(draw(NORMAL, 5), targets, batch_size=4)


def test_bundle_without_normal_equations_says_how_to_get_them(tmp_path, targets):
    write_tiny_bundle(tmp_path, layers=1, tanh=False, value_range=RANGE)
    inverter = Inverter(tmp_path, threads=1)
    latents = np.zeros((5, LATENT))
    for call in (
        inverter.check_uncertainty,
        lambda: inverter.uncertainty(latents, targets),
        lambda: inverter.normal_equations(latents, targets),
    ):
        with pytest.raises(
            BundleError, match=r"no normal equations of .* `pyinv export` without --loss"
        ):
            call()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_hops": -1}, "n_hops must be"),
        ({"n_hops": 4096}, "n_hops must be"),
        ({"seed": -1}, "seed must"),
    ],
)
def test_bad_hops_are_refused(normal, targets, wrong, message):
    with pytest.raises(InputError, match=message):
        normal[0].uncertainty(np.zeros((5, LATENT)), targets, **wrong)


@pytest.mark.parametrize("noise", [0, -1, 1e200, np.nan, np.inf, "loud", True, [0.1, 0.2]])
def test_bad_noise_is_refused(normal, targets, noise):
    for call in (
        lambda: normal[0].check_uncertainty(noise=noise),
        lambda: normal[0].uncertainty(np.zeros((5, LATENT)), targets, noise=noise),
    ):
        with pytest.raises(InputError, match="noise must be a number > 0"):
            call()


def test_noise_of_fewer_pixels_than_components_must_be_given(tmp_path):
    generator = TinyGenerator(
        {"W2": np.eye(LATENT, 4, dtype=np.float32), "b2": np.zeros(4, dtype=np.float32)},
        (1, 2, 2),
        tanh=False,
    )
    inverter, _ = linear(NORMAL, tmp_path, generator=generator)
    images = np.zeros((2, 1, 2, 2), dtype=np.float32)
    with pytest.raises(InputError, match="noise must be given: 4 values are too few"):
        inverter.check_uncertainty()
    found = inverter.uncertainty(inverter.invert(images, recipe=QUICK), images, noise=0.1)
    assert np.isinf(found.condition_number).all()
    assert not found.identifiable.any()
