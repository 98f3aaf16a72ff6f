"""LaDDer: a VAE under a prior that is learned with it, and is a generative model itself.

S. Lin, R. Clark, "LaDDer: Latent Data Distribution Modelling with a Generative Prior", BMVC 2020,
arXiv 2009.00088. Networks and settings as in the authors' program; what it gets wrong can be set to
be as there.
"""

from fastlatent.models.ladder.config import LaDDerConfig, PriorConfig, PriorSchedule
from fastlatent.models.ladder.model import LaDDer

__all__ = ["LaDDer", "LaDDerConfig", "PriorConfig", "PriorSchedule"]
