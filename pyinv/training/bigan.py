r"""The method ``bigan``: an encoder, a generator and a discriminator of pairs, trained jointly.

The discriminator D distinguishes the pair (x, E(x)) of a real image from the pair (G(z), z) of a
random latent. With $\sigma(D)$ the probability of the first,

$$
\min_{E, G} \max_D\; E_x \log \sigma(D(x, E(x))) + E_z \log(1 - \sigma(D(G(z), z)))
$$

where E and G minimise the non-saturating loss, as G does in every other GAN here:
$-\log(1 - \sigma(D(x, E(x)))) - \log \sigma(D(G(z), z))$. At the optimum E inverts G.

With ``gradient_penalty`` above 0, D also minimises that weight times half the squared norm of its
gradient at (x, E(x)) (Mescheder et al. 2018, R1). This keeps D from winning before E and G learn
anything. The papers have no such term.

Sources: Donahue, Krähenbühl & Darrell 2017 (arXiv:1605.09782), equations 2 and 3 and section 3.4;
the networks are those of Luo et al. 2017, tables 3, 5 and 6. G cannot be pretrained (Luo et al.,
section 4.1). The given generator only determines the shapes of latents and images, and generates
the images x if there are no real ones.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from pyinv.errors import InputError
from pyinv.models import get_model
from pyinv.models.encoders import make_encoder
from pyinv.models.luo import LuoBiganDiscriminator, LuoGenerator
from pyinv.training.adversaries import draw_weights, gradient_penalty
from pyinv.training.draws import Purpose, random
from pyinv.training.encoder_methods import Phase, Setting

__all__ = ["Bigan", "check_images"]

# The gradient penalty applies once every this many iterations, with its weight times this number.
PENALTY_EVERY = 4
# The range of the generator's sigmoid.
_VALUE_RANGE = (0.0, 1.0)


def check_images(image_shape: tuple[int, ...]) -> None:
    """Raise InputError if the networks do not support images of this shape."""
    try:
        get_model("luo").check(image_shape)
    except InputError:
        raise InputError(
            "method bigan trains a generator of 32 or 64 pixels, gray or colour, got images "
            f"{list(image_shape)}; choose another method (--method), or a generator of these sizes"
        ) from None


class Bigan(Phase):
    """Trains D with one step of Adam per iteration, and E and G with one joint step."""

    def __init__(self, setting: Setting) -> None:
        configuration, frozen = setting.configuration, setting.generator
        shape, latent_size, width = frozen.image_shape, frozen.latent_size, configuration.width
        channels, size, _ = shape
        makers: dict[str, tuple[Purpose, Callable[[], nn.Module]]] = {
            "encoder": (
                Purpose.ENCODER,
                lambda: make_encoder(
                    shape,
                    latent_size,
                    prior=frozen.prior,
                    value_range=_VALUE_RANGE,
                    network=configuration.network,
                    width=width,
                ),
            ),
            "generator": (
                Purpose.GENERATOR,
                lambda: LuoGenerator(latent_size, size, channels, width),
            ),
            "discriminator": (
                Purpose.DISCRIMINATOR,
                lambda: LuoBiganDiscriminator(latent_size, size, channels, width),
            ),
        }
        networks = {}
        for name, (purpose, make) in makers.items():
            networks[name] = setting.network(make, purpose).cpu()
            draw_weights(networks[name], random(configuration.seed, purpose, 1))
            networks[name].to(setting.device)
        both = [*networks["encoder"].parameters(), *networks["generator"].parameters()]
        super().__init__(
            "bigan",
            setting,
            configuration.schedule,
            first=0,
            networks=networks,
            solvers={
                "discriminator": setting.adam(networks["discriminator"].parameters()),
                "both": setting.adam(both),
            },
            losses=("discriminator", "generator"),
        )

    def step(self, iteration: int) -> dict[str, float]:
        networks, number = self.networks, self.first + iteration
        discriminator = networks["discriminator"]
        real = self.batch(number)
        latents = self.setting.latents(number)
        found, made = networks["encoder"](real), networks["generator"](latents)

        weight = self.setting.configuration.gradient_penalty
        penalized = weight > 0 and iteration % PENALTY_EVERY == 0
        pair = [part.detach().requires_grad_(penalized) for part in (real, found)]
        # Two separate batches, so that batch norm sees pairs of one kind only.
        on_real = discriminator(*pair)
        on_made = discriminator(made.detach(), latents)
        discriminator_loss = _toward(1, on_real) + _toward(0, on_made)
        minimized = discriminator_loss
        if penalized:
            minimized = minimized + weight * PENALTY_EVERY * gradient_penalty(on_real, *pair)
        self.update("discriminator", minimized)

        # E and G need the gradient through the discriminator, not that of its weights.
        discriminator.requires_grad_(False)
        loss = _toward(0, discriminator(real, found)) + _toward(1, discriminator(made, latents))
        self.update("both", loss)
        discriminator.requires_grad_(True)
        return {"discriminator": discriminator_loss.item(), "generator": loss.item()}

    @property
    def value_range(self) -> tuple[float, float]:
        return _VALUE_RANGE

    def encoder(self) -> nn.Module:
        return self.networks["encoder"]

    def generator(self) -> nn.Module:
        return self.networks["generator"]

    def batch(self, number: int, purpose: Purpose = Purpose.LATENTS) -> Tensor:
        """Return real images, or generated ones in their place, in [0, 1]."""
        setting = self.setting
        if setting.pixels is not None:
            images = setting.real(number, setting.configuration.batch_size)
        else:
            # Must differ from the latents that G gets in this iteration.
            own_purpose = Purpose.TARGETS if purpose == Purpose.LATENTS else purpose
            images = setting.generator.generate(setting.latents(number, own_purpose))
        low, high = setting.generator.value_range
        return ((images - low) / (high - low)).clamp(0, 1)


def _toward(label: int, logit: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits for a label, 0 or 1."""
    return functional.softplus(-logit if label else logit).mean()
