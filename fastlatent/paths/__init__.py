"""Paths between points of any space with a density: linear, spherical and likely ones.

Nothing here knows of models; `fastlatent.inference.walking` leads the
same paths through their latents.
"""

from fastlatent.paths.likelihood import LikelihoodPaths, likelihood_path
from fastlatent.paths.objective import Objective, Terms, typical_level

__all__ = ["LikelihoodPaths", "Objective", "Terms", "likelihood_path", "typical_level"]
