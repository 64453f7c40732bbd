"""Losses of a generator's images, and their derivatives with respect to the latent."""
