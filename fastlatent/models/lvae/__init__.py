"""Ladder VAE: a hierarchy of spatial Gaussian latents over a discretized image likelihood.

Bottom-up and top-down passes share information as in C. K. Sønderby, T. Raiko, L. Maaløe,
S. K. Sønderby, O. Winther, "Ladder Variational Autoencoders", NeurIPS 2016; layers and settings as
in the program of A. Dittadi (github.com/addtt/ladder-vae-pytorch, MIT), which adds spatial
latents, skip connections around the stochastic layers and free bits.
"""

from fastlatent.models.lvae.config import LVAEConfig
from fastlatent.models.lvae.layers import LadderPass, LayerPass, Normal
from fastlatent.models.lvae.likelihoods import Likelihood
from fastlatent.models.lvae.model import LadderVAE

__all__ = ["LVAEConfig", "LadderPass", "LadderVAE", "LayerPass", "Likelihood", "Normal"]
