"""The NumPy twin of the engine: the same loop, written for clarity instead of speed.

It takes the arguments of ``pyinv._core.invert`` (recipe and prior from ``describe()``, one row of
images per target) and a plain Python objective. There are no lanes and no queue: results must not
depend on them, so every target runs alone. Only a coupled batch runs in groups.

Arithmetic is float32, with one rounding per operation. Transcendental functions are computed in
float64 and rounded, which equals a correctly rounded float32 function. Levenberg-Marquardt and
L-BFGS compute in float64 between float32 latents; L-BFGS stores float32 pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Bits = NDArray[np.uint32]
# From latents, images and conditions to loss and gradient; normal equations also return the gram.
Objective = Callable[[Array, Array, "Array | None"], tuple[Array, ...]]
Description = dict[str, Any]

CONVERGED, PLATEAU, STEP_LIMIT, IMPROVING, NON_FINITE, CANCELLED = range(6)

INITIAL, RESAMPLING = 0, 1

f32 = np.float32


# Rounding


def rounded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Compute ``function`` in float64 and round once to float32."""
    return f32(function(*(np.asarray(a, dtype=np.float64) for a in arguments)))


def fused_multiply_add(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` with one rounding: the product of two float32 numbers is exact in float64."""
    return rounded(lambda x, y, z: x * y + z, a, b, c)


# Random numbers


def philox4x32_10(counter: Bits, key: Bits) -> Bits:
    """Philox4x32 with ten rounds (Salmon et al. 2011): [..., 4] and [..., 2] -> [..., 4]."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, dtype=np.uint64), -1, 0)
    low_word, word = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (right >> word) ^ c1 ^ k0,
            right & low_word,
            (left >> word) ^ c3 ^ k1,
            left & low_word,
        )
        k0 = (k0 + np.uint64(0x9E3779B9)) & low_word
        k1 = (k1 + np.uint64(0xBB67AE85)) & low_word
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def random_words(
    seed: int, target_ids: Sequence[int], restart: int, update: int, purpose: int, size: int
) -> Bits:
    """Return the four words of every component of every target: [N, size, 4]."""
    counter = np.zeros((len(target_ids), size, 4), dtype=np.uint32)
    counter[..., 0] = np.arange(size)
    counter[..., 1] = update
    for row, target in enumerate(int(t) for t in target_ids):
        counter[row, :, 2] = target & 0xFFFFFFFF
        counter[row, :, 3] = purpose | restart << 4 | (target >> 32) << 16
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
    return philox4x32_10(counter, key)


def decision_uniform(words: Bits) -> Array:
    return words[..., 0].astype(np.float32) * f32(2.0**-32)


def uniform_draw(words: Bits, low: float, high: float) -> Array:
    fraction = (words[..., 1] >> np.uint32(8)).astype(np.float32) * f32(2.0**-24)
    return fused_multiply_add(f32(high) - f32(low), fraction, f32(low))


def normal_draw(words: Bits, mean: float, std: float) -> Array:
    u1 = fused_multiply_add(words[..., 1].astype(np.float32), f32(2.0**-32), f32(2.0**-33))
    u2 = words[..., 2].astype(np.float32) * f32(2.0**-32)
    radius = np.sqrt(f32(-2.0) * rounded(np.log, u1))
    cosine = rounded(np.cos, f32(2.0 * np.pi) * u2)
    return fused_multiply_add(f32(std), radius * cosine, f32(mean))


def draw(prior: Description, words: Bits) -> Array:
    if prior["kind"] == "uniform":
        return uniform_draw(words, prior["low"], prior["high"])
    return normal_draw(words, prior["mean"], prior["std"])


def draw_initial(
    prior: Description, seed: int, target_ids: Sequence[int], restart: int, size: int
) -> Array:
    return draw(prior, random_words(seed, target_ids, restart, 0, INITIAL, size))


def hopped(prior: Description, hop: float, latents: Array, draws: Array) -> Array:
    """Move latents towards draws, so that draws from a normal prior keep their distribution."""
    mean = f32(prior_moments(prior)[0])
    stay = f32(1 - hop if prior["kind"] == "uniform" else np.sqrt(1 - hop**2))
    moved: Array = mean + (stay * (latents - mean) + f32(hop) * (draws - mean))
    return moved


# Priors


def prior_moments(prior: Description) -> tuple[float, float]:
    if prior["kind"] == "uniform":
        low, high = prior["low"], prior["high"]
        return (low + high) / 2, (high - low) / np.sqrt(12.0)
    return prior["mean"], prior["std"]


# Constraints


def resampling_probability(constraint: Description, prior: Description, z: Array) -> Array:
    """The probability p that a component at z is resampled within the horizon (Egan et al.)."""
    y = (z - f32(prior["mean"])) / f32(prior["std"])
    size = np.abs(y)
    if constraint["kind"] == "hard_cutoff":
        return (size > f32(constraint["c"])).astype(np.float32)
    if constraint["kind"] == "logistic_cutoff":
        a, b = f32(constraint["a"]), f32(constraint["b"])
        return f32(1) / (f32(1) + rounded(np.exp, -a * (size - b)))
    a = f32(constraint["a"])
    inside = rounded(np.exp, np.minimum((y * y - a * a) / f32(2), f32(0)))
    return np.where(size <= a, inside, f32(1))


def step_probability(p: Array, horizon: int) -> Array:
    """The probability q of resampling at each of ``horizon`` steps that gives p over all steps."""
    log_kept = rounded(np.log1p, -np.where(p < 1, p, f32(0)))
    return np.where(p < 1, rounded(lambda x: -np.expm1(x), log_kept / f32(horizon)), f32(1))


def constrain(
    constraint: Description, prior: Description, max_steps: int, z: Array, words: Bits
) -> tuple[Array, NDArray[np.bool_]]:
    """Apply the constraint to stepped latents [N, d]; return latents, and which were resampled."""
    kind = constraint["kind"]
    nothing = np.zeros(z.shape, dtype=bool)
    finite = np.isfinite(z)
    if kind == "no_constraint":
        return z, nothing

    if kind in ("clip", "stochastic_clip"):
        low, high = bounds(constraint, prior)
        if kind == "clip":
            return np.where(finite, np.minimum(np.maximum(z, low), high), z), nothing
        resampled = finite & ((z <= low) | (z >= high))
        return np.where(resampled, uniform_draw(words, low, high), z), resampled

    horizon = max_steps if constraint.get("horizon") is None else constraint["horizon"]
    q = step_probability(resampling_probability(constraint, prior, z), horizon)
    # The decision uniform rounds up to 1 once in 2^25 draws; a probability of 1 must still hold.
    resampled = finite & ((decision_uniform(words) < q) | (q == 1))
    return np.where(resampled, normal_draw(words, prior["mean"], prior["std"]), z), resampled


# Penalties


def prior_curvature(
    penalty: Description, prior: Description, loss: Any, step: int, max_steps: int, size: int
) -> Any:
    """A prior penalty's second derivative in any component, at a latent with this loss."""
    weight = penalty["weight"] * (1 - step / max_steps if penalty["anneal"] else 1)
    if penalty["relative"]:
        weight = weight * np.fmax(np.float64(loss), 0)
    return weight / (f32(prior_moments(prior)[1]).astype(np.float64) ** 2 * size)


def penalty_gradient(
    penalty: Description, prior: Description, z: Array, loss: Array, step: int, max_steps: int
) -> Array:
    """The penalty's gradient at a group's latents [N, d], with losses [N]."""
    size = z.shape[1]
    mean, std = prior_moments(prior)
    if penalty["kind"] == "moment_penalty":
        axis = None if penalty["over"] == "batch" else 1
        mu = rounded(lambda x: np.mean(x, axis=axis, keepdims=True), z)
        sd = rounded(lambda x: np.std(x, axis=axis, keepdims=True), z)
        shift = f32(2 * penalty["gamma_mean"] / size) * (mu - f32(mean))
        spread = np.where(sd == 0, f32(0), (z - mu) / np.where(sd == 0, f32(1), sd))
        return shift + f32(2 * penalty["gamma_std"] / size) * (sd - f32(std)) * spread
    curvature = prior_curvature(penalty, prior, loss[:, None], step, max_steps, size)
    return f32(curvature) * (z - f32(mean))


# Solvers


def learning_rate(solver: Description, step: int, max_steps: int) -> float:
    schedule = solver["schedule"]
    if schedule["kind"] == "step_decay":
        return solver["learning_rate"] * schedule["factor"] ** (step // schedule["every"])
    if schedule["kind"] == "cosine":
        final = schedule["final"]
        wave = (1 + np.cos(np.pi * step / max_steps)) / 2
        return solver["learning_rate"] * (final + (1 - final) * wave)
    return solver["learning_rate"]


def solver_update(
    solver: Description,
    z: Array,
    m: Array,
    v: Array,
    g: Array,
    step: int,
    max_steps: int,
    ages: Array,
) -> tuple[Array, Array, Array]:
    """``ages``: the number of steps in each component's moments, including this one."""
    rate = learning_rate(solver, step, max_steps)
    if solver["kind"] == "gradient_descent":
        m = f32(solver["momentum"]) * m + g
        return z - f32(rate) * m, m, v
    if solver["kind"] == "rmsprop":
        v = f32(solver["alpha"]) * v + f32(1 - solver["alpha"]) * (g * g)
        m = f32(solver["momentum"]) * m + g / (np.sqrt(v) + f32(solver["epsilon"]))
        return z - f32(rate) * m, m, v
    beta1, beta2 = solver["beta1"], solver["beta2"]
    m = f32(beta1) * m + f32(1 - beta1) * g
    v = f32(beta2) * v + f32(1 - beta2) * (g * g)
    scale = (rate / (1 - beta1**ages)).astype(np.float32)
    root = np.sqrt(v) / np.sqrt(1 - beta2**ages).astype(np.float32)
    return z - scale * m / (root + f32(solver["epsilon"])), m, v


# The loop


@dataclass
class Outcome:
    """The outcome of one attempt at one target."""

    status: int
    loss: np.float32
    latent: Array

    def rank(self, stage: Description, prior: Description) -> tuple[bool, bool, float]:
        """A sort key: better outcomes come first. ``stage`` is the recipe's last."""
        rank = float(self.loss)
        for penalty in stage["penalties"]:
            if penalty["kind"] == "prior_penalty" and not penalty["anneal"]:
                mean, std = prior_moments(prior)
                if penalty["relative"] and rank <= 0:
                    rank -= 1e3  # below any float's logarithm
                    continue
                if penalty["relative"]:
                    rank = np.log(rank)
                rank += (
                    penalty["weight"] * half_square(self.latent, mean) / len(self.latent) / std**2
                )
        return self.status != CONVERGED, bool(np.isnan(self.loss)), rank


@dataclass
class Progress:
    """The progress of one target in one stage."""

    status: int | None = None
    previous: np.float32 | None = None
    patience: int = 0
    keep: str = "best"
    best: tuple[np.float32, Array] | None = None
    last: tuple[np.float32, Array] | None = None
    earlier: float = np.nan

    def observe(self, stage: Description, step: int, loss: np.float32, g: Array, z: Array) -> None:
        """Apply the stop rules, in order, to the loss and gradient evaluated at z."""
        if not (np.isfinite(loss) and np.isfinite(g).all()):
            self.stop(NON_FINITE)
            return
        if self.best is None or loss < self.best[0]:
            self.best = (loss, z.copy())
        self.last = (loss, z.copy())

        if stage["loss_tolerance"] > 0 and 0 <= loss <= f32(stage["loss_tolerance"]):
            self.stop(CONVERGED)
        change, relative = f32(stage["change_tolerance"]), f32(stage["relative_change_tolerance"])
        still = False
        if step >= 1 and self.previous is not None:
            moved = np.abs(loss - self.previous)
            still = bool(
                (change > 0 and moved <= change)
                or (relative > 0 and moved <= relative * np.abs(self.previous))
            )
        self.patience = self.patience + 1 if still else 0
        self.previous = loss
        if self.patience >= stage["patience"]:
            self.stop(PLATEAU)
        self.limit_steps(stage, step)

    def kept(self) -> tuple[np.float32, Array] | None:
        return self.best if self.keep == "best" else self.last

    def limit_steps(self, stage: Description, step: int) -> None:
        """End the stage after its last step; tell whether its last tenth improved the loss."""
        kept = self.kept()
        assert kept is not None
        loss, most = float(kept[0]), stage["max_steps"]
        if step == most - -(-most // 10):
            self.earlier = loss
        if step == most:
            improved = self.earlier - loss > 0.01 * abs(self.earlier)
            self.stop(IMPROVING if improved else STEP_LIMIT)

    def stop(self, status: int) -> None:
        """Set the status to the first rule met; a member of a group may still converge later."""
        if self.status is None or status == CONVERGED:
            self.status = status

    def outcome(self, start: Array) -> Outcome:
        """Return the outcome; ``start`` is the latent that the stage started from."""
        assert self.status is not None
        kept = self.kept()
        if kept is None:
            return Outcome(self.status, f32(np.nan), start)
        return Outcome(self.status, *kept)


def latent_error(z: Array, true_latents: Array) -> Array:
    """Each row's mean squared difference; NaN if it overflows float32."""
    error = rounded(lambda a, b: np.mean((a - b) ** 2, axis=1), z, true_latents)
    return np.where(np.isfinite(error), error, f32(np.nan))


# Levenberg-Marquardt


def half_square(z: Array, mean: float) -> float:
    """Half the squared distance of a latent from a mean, in double."""
    away = z.astype(np.float64) - mean
    return float(away @ away) / 2


def cholesky(matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The lower triangle L with L L^T = matrix, or None where a pivot is not positive."""
    lower = np.zeros_like(matrix)
    for j in range(len(matrix)):
        column = matrix[j:, j] - lower[j:, :j] @ lower[j, :j]
        if not 0 < column[0] < np.inf:
            return None
        lower[j:, j] = column / np.sqrt(column[0])
    return lower


def bounds(constraint: Description, prior: Description) -> tuple[Any, Any]:
    """The bounds of a clip, by default the prior's."""
    low = prior["low"] if constraint["low"] is None else constraint["low"]
    high = prior["high"] if constraint["high"] is None else constraint["high"]
    return f32(low), f32(high)


def within_bounds(constraint: Description, prior: Description, z: Array) -> Array:
    """Move latents to within a clip's bounds, where trials start."""
    return z if constraint["kind"] != "clip" else np.clip(z, *bounds(constraint, prior))


def outward(constraint: Description, prior: Description, z: Array, step: Any) -> NDArray[np.bool_]:
    """Which components are at a bound of a clip that the step would cross."""
    if constraint["kind"] != "clip":
        return np.zeros(z.shape, dtype=bool)
    low, high = bounds(constraint, prior)
    return ((z <= low) & (step < 0)) | ((z >= high) & (step > 0))


def damped_step(
    gram: NDArray[np.float64],
    slope: NDArray[np.float64],
    curvature: float,
    fixed: NDArray[np.bool_],
    z: Array,
    damping: float,
    up: float,
) -> tuple[Array | None, float]:
    """Return the latent after a step of (gram + curvature + damping) from z [d], and the damping.

    The latent is None if no damping worked.
    """
    m = np.mean(np.diag(gram))
    m = m if m > 0 else 1.0
    for _ in range(31):
        matrix = gram + (curvature + damping * m) * np.eye(len(gram))
        matrix[fixed, :] = matrix[:, fixed] = 0
        matrix[fixed, fixed] = 1
        lower = cholesky(matrix)
        if lower is not None:
            half = np.linalg.solve(lower, np.where(fixed, 0, -slope))
            stepped = f32(z + np.linalg.solve(lower.T, half))
            if np.isfinite(stepped).all():
                return stepped, damping
        damping *= up
    return None, damping


# L-BFGS

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]  # step s and difference of gradients y


def inverse_hessian_product(
    pairs: list[Pair],
    q: NDArray[np.float64],
    preconditioner: Array | None,
    fixed: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """H q by the two-loop recursion; the oldest pair comes first.

    H starts from a multiple of the preconditioner [d, d], applied to the components not ``fixed``.
    """
    q, weights = q.copy(), []
    for s, y in reversed(pairs):
        weights.append(s @ q / (s @ y))
        q -= weights[-1] * y
    s, y = pairs[-1]
    if preconditioner is None:
        q *= (s @ y) / (y @ y)
    else:
        matrix = preconditioner.astype(np.float64)
        q = (s @ y) / (y @ matrix @ y) * (matrix @ np.where(fixed, 0, q))
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        q += (weight - y @ q / (s @ y)) * s
    return q


# Attempts


@dataclass
class Attempt:
    """One attempt at a group of targets that start and end together (usually a single target)."""

    objectives: Sequence[Objective]
    recipe: Description
    prior: Description
    images: Array
    latents: Array
    condition: Array | None
    true_latents: Array | None
    target_ids: Sequence[int]
    seed: int
    restart: int
    trace_every: int
    preconditioner: Array | None

    def __post_init__(self) -> None:
        count, stages = len(self.latents), self.recipe["stages"]
        every, updates = self.trace_every, sum(stage["max_steps"] for stage in stages)
        self.trace = np.full((count, 1 + updates // every if every else 0), np.nan, np.float32)
        self.min_latent_error = np.full(count, np.nan, dtype=np.float32)
        self.outcomes: list[Outcome | None] = [None] * count
        self.update = 0
        self.updates, self.resampled, self.normal_equations = np.zeros((3, count), dtype=np.int64)

        first = len(stages) - 1 if self.restart and self.recipe["hop_size"] else 0
        for index, stage in enumerate(stages[first:], first):
            kind = stage["solver"]["kind"]
            if kind in ("levenberg_marquardt", "lbfgs"):
                self.latents = within_bounds(stage["constraint"], self.prior, self.latents)
            start = self.latents.copy()
            run = {"levenberg_marquardt": self.run_damped_stage, "lbfgs": self.run_lbfgs_stage}
            members = run.get(kind, self.run_stage)(stage)
            for row, member in enumerate(members):
                ends = index == len(stages) - 1 or member.status in (CONVERGED, NON_FINITE)
                if self.outcomes[row] is None and ends:
                    self.outcomes[row] = member.outcome(start[row])
            if all(outcome is not None for outcome in self.outcomes):
                break

    def evaluate(self, stage: Description, which: str, latents: Array) -> tuple[Array, ...]:
        if self.true_latents is not None:
            self.min_latent_error = np.fmin(
                self.min_latent_error, latent_error(latents, self.true_latents)
            )
        return self.objectives[stage[which]](latents, self.images, self.condition)

    def traced(self, losses: Any) -> None:
        if self.trace_every and self.update % self.trace_every == 0:
            self.trace[:, self.update // self.trace_every] = losses

    def constrained(self, stage: Description, latents: Array) -> tuple[Array, NDArray[np.bool_]]:
        size = latents.shape[1]
        words = random_words(
            self.seed, self.target_ids, self.restart, self.update, RESAMPLING, size
        )
        return constrain(stage["constraint"], self.prior, stage["max_steps"], latents, words)

    def curvature(self, stage: Description, loss: float, step: int) -> float:
        """The second derivative of a stage's prior penalty at a latent with this loss."""
        size = self.latents.shape[1]
        return sum(
            prior_curvature(p, self.prior, loss, step, stage["max_steps"], size)
            for p in stage["penalties"]
        )

    def run_stage(self, stage: Description) -> list[Progress]:
        """A stage of first-order steps."""
        z, max_steps = self.latents, stage["max_steps"]
        m, v, ages = np.zeros_like(z), np.zeros_like(z), np.zeros(z.shape)
        members = [Progress(keep=self.recipe["keep"]) for _ in z]
        for step in range(max_steps + 1):
            loss, g = self.evaluate(stage, "objective", z)
            self.traced(loss)
            for row, member in enumerate(members):
                member.observe(stage, step, loss[row], g[row], z[row])
            if all(member.status is not None for member in members):
                break

            g = g.copy()
            finite = np.isfinite(loss) & np.isfinite(g).all(axis=1)
            for penalty in stage["penalties"]:
                g += penalty_gradient(penalty, self.prior, z, loss, step, max_steps)
            ages += 1
            moved, m, v = solver_update(stage["solver"], z, m, v, g, step, max_steps, ages)
            self.update += 1
            moved, fresh = self.constrained(stage, moved)
            if stage["reset_moments"]:
                m, v = np.where(fresh, f32(0), m), np.where(fresh, f32(0), v)
                ages = np.where(fresh, 0, ages)
            # A member without a finite gradient cannot step. It stays at its latent, because a
            # latent that is not finite would spoil the statistics of the others.
            z = np.where(finite[:, None], moved, z)
            self.updates += finite
            self.resampled += np.where(finite, fresh.sum(axis=1), 0)
        self.latents = z
        return members

    def run_damped_stage(self, stage: Description) -> list[Progress]:
        """A stage of Levenberg-Marquardt steps for one target."""
        (z,) = self.latents
        solver, size = stage["solver"], len(z)
        mean = prior_moments(self.prior)[0]
        damping = solver["damping"]
        progress = Progress(keep=self.recipe["keep"])
        step = 0

        def solved() -> list[Any]:
            self.normal_equations += 1
            outputs = self.evaluate(stage, "normal_equations", z[None])
            return [output[0].astype(np.float64) for output in outputs]

        loss, g, gram = solved()
        self.traced(loss)
        progress.observe(stage, step, f32(loss), np.append(g, gram), z)
        c = self.curvature(stage, loss, step)
        while progress.status is None:
            slope = g + c * (z.astype(np.float64) - mean)
            fixed = outward(stage["constraint"], self.prior, z, -slope)
            stepped, damping = damped_step(gram, slope, c, fixed, z, damping, solver["up"])
            if stepped is None:
                progress.stop(PLATEAU)
                break
            step += 1
            self.update += 1
            self.updates += 1
            (tried,), fresh = self.constrained(stage, stepped[None])
            self.resampled += fresh.sum()
            delta = tried.astype(np.float64) - z
            predicted = -slope @ delta - delta @ (gram + c * np.eye(size)) @ delta / 2
            tried_loss = self.evaluate(stage, "objective", tried[None])[0][0]
            pull = half_square(z, mean) - half_square(tried, mean)
            reduction = loss - float(tried_loss) + c * pull

            if np.isfinite(tried_loss) and reduction > 0 and reduction > 1e-3 * predicted:
                # As products, because the prediction may be negative if a bound shortens a step.
                if reduction > 0.75 * predicted:
                    damping *= solver["down"]
                elif reduction < 0.25 * predicted:
                    damping *= 2
                damping = min(max(damping, 1e-8), 1e8)
                loss, z = float(tried_loss), tried
                progress.observe(stage, step, tried_loss, g, z)
                if progress.status is None:
                    other_loss, g, gram = solved()
                    if not np.isfinite([other_loss, *g, *gram.flat]).all():
                        progress.stop(NON_FINITE)
                    c = self.curvature(stage, loss, step)
            else:
                damping = min(max(damping * solver["up"], 1e-8), 1e8)
                if damping > 1e5:
                    progress.stop(PLATEAU)
                else:
                    progress.limit_steps(stage, step)
            self.traced(loss)
        self.latents = z[None]
        return [progress]

    def run_lbfgs_stage(self, stage: Description) -> list[Progress]:
        """A stage of quasi-Newton steps for one target."""
        (z,) = self.latents
        solver = stage["solver"]
        mean, std = prior_moments(self.prior)
        progress = Progress(keep=self.recipe["keep"])
        pairs: list[Pair] = []
        step, rejected, length = 0, 0, 1.0

        outputs = self.evaluate(stage, "objective", z[None])
        loss, g = (output[0].astype(np.float64) for output in outputs)
        self.traced(loss)
        progress.observe(stage, step, f32(loss), g, z)
        c = self.curvature(stage, loss, step)
        while progress.status is None:
            slope = g + c * (z.astype(np.float64) - mean)
            fixed = outward(stage["constraint"], self.prior, z, -slope)
            free = np.where(fixed, 0, slope)
            direction = -free
            matrix = self.preconditioner if solver["preconditioned"] else None
            if pairs:
                product = inverse_hessian_product(pairs, free, matrix, fixed)
                direction = np.where(fixed, 0, -product)
            elif free.any():
                if matrix is not None:
                    direction = np.where(fixed, 0, matrix.astype(np.float64) @ direction)
                direction *= solver["first_step"] * std / np.sqrt(direction @ direction)
            stepped = f32(z + length * direction)
            if not (-np.inf < direction @ slope < 0 and np.isfinite(stepped).all()):
                if not pairs:
                    progress.stop(PLATEAU)
                    break
                pairs, rejected, length = [], 0, 1.0
                continue

            step += 1
            self.update += 1
            self.updates += 1
            (tried,), fresh = self.constrained(stage, stepped[None])
            self.resampled += fresh.sum()
            moved = tried.astype(np.float64) - z
            outputs = self.evaluate(stage, "objective", tried[None])
            tried_loss, tried_g = (output[0].astype(np.float64) for output in outputs)
            fall = loss - tried_loss + c * (half_square(z, mean) - half_square(tried, mean))
            finite = np.isfinite(tried_loss) and np.isfinite(tried_g).all()
            if finite and fall > 0 and fall >= -1e-4 * (slope @ moved):
                bent = f32(tried_g - g + c * moved).astype(np.float64)
                moved = f32(moved).astype(np.float64)
                if moved @ bent > 1e-10 * (bent @ bent):
                    pairs = [*pairs, (moved, bent)][-solver["history"] :]
                loss, g, z, rejected, length = float(tried_loss), tried_g, tried, 0, 1.0
                progress.observe(stage, step, f32(loss), g, z)
                c = self.curvature(stage, loss, step)
            else:
                rejected, length = rejected + 1, length * 0.3
                if rejected == 12 and not pairs:
                    progress.stop(PLATEAU)
                else:
                    progress.limit_steps(stage, step)
                if rejected == 12:
                    pairs, rejected, length = [], 0, 1.0
            self.traced(loss)
        self.latents = z[None]
        return [progress]


@dataclass
class Inversion:
    """``resampled`` counts components over all attempts, so that tests can check that it occurs."""

    latents: Array
    loss: Array
    status: NDArray[np.uint8]
    steps: NDArray[np.int64]
    normal_equations: NDArray[np.int64]
    attempts: NDArray[np.int32]
    trace: Array | None
    min_latent_error: Array | None
    resampled: NDArray[np.int64]


def invert(
    objectives: Sequence[Objective],
    recipe: Description,
    prior: Description,
    images: Array,
    *,
    size: int,
    initial: Array | None = None,
    condition: Array | None = None,
    true_latents: Array | None = None,
    target_ids: Sequence[int] | None = None,
    seed: int = 0,
    lanes: int = 64,
    coupled: bool = False,
    trace_every: int = 0,
    preconditioner: Array | None = None,
) -> Inversion:
    """Invert images [N, P]. ``size`` is d; ``lanes`` only affects the groups of a coupled batch.

    The loop handles overflow and NaN, so NumPy's warnings about them are silenced.
    """
    count = len(images)
    ids = range(count) if target_ids is None else target_ids
    result = Inversion(
        latents=np.zeros((count, size), dtype=np.float32),
        loss=np.zeros(count, dtype=np.float32),
        status=np.zeros(count, dtype=np.uint8),
        steps=np.zeros(count, dtype=np.int64),
        normal_equations=np.zeros(count, dtype=np.int64),
        attempts=np.zeros(count, dtype=np.int32),
        trace=None,
        min_latent_error=None if true_latents is None else np.full(count, np.nan, dtype=np.float32),
        resampled=np.zeros(count, dtype=np.int64),
    )
    traces: list[Array] = []
    last = recipe["stages"][-1]
    groups = np.array_split(np.arange(count), -(-count // lanes) if coupled else count)

    for rows in groups:
        members = [int(ids[row]) for row in rows]
        best: list[Outcome] = []
        last_restart = recipe["restarts"]
        for restart in itertools.count():
            if restart == 0 and initial is not None:
                start = np.asarray(initial[rows], dtype=np.float32)
            elif restart == 0 and recipe["start"] == "mean":
                start = np.full((len(rows), size), prior_moments(prior)[0], dtype=np.float32)
            else:
                start = draw_initial(prior, seed, members, restart, size)
            if restart and recipe["hop_size"]:
                kept = np.array([outcome.latent for outcome in best])
                known = np.isfinite([outcome.loss for outcome in best])[:, None]
                start = np.where(known, hopped(prior, recipe["hop_size"], kept, start), start)
            with np.errstate(all="ignore"):
                attempt = Attempt(
                    objectives,
                    recipe,
                    prior,
                    images[rows],
                    start,
                    None if condition is None else condition[rows],
                    None if true_latents is None else true_latents[rows],
                    members,
                    seed,
                    restart,
                    trace_every,
                    preconditioner,
                )
            # min returns the first of equals, which is the earliest attempt.
            outcomes = [outcome for outcome in attempt.outcomes if outcome is not None]
            best = best or outcomes
            pairs = zip(best, outcomes, strict=True)
            best = [min(pair, key=lambda outcome: outcome.rank(last, prior)) for pair in pairs]
            result.steps[rows] += attempt.updates
            result.resampled[rows] += attempt.resampled
            result.normal_equations[rows] += attempt.normal_equations
            result.attempts[rows] = restart + 1
            if result.min_latent_error is not None:
                result.min_latent_error[rows] = np.fmin(
                    result.min_latent_error[rows], attempt.min_latent_error
                )
            stuck = not attempt.updates.any() and outcomes[0].status == PLATEAU
            if restart == 0 and recipe["start"] == "mean" and stuck:
                last_restart += 1
            if restart == last_restart or all(outcome.status == CONVERGED for outcome in best):
                break
        for row, outcome in zip(rows, best, strict=True):
            result.latents[row] = outcome.latent
            result.loss[row] = outcome.loss
            result.status[row] = outcome.status
        traces.append(attempt.trace)

    if trace_every:
        result.trace = np.concatenate(traces)
    return result
