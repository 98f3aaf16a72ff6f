"""
A prior fitted after training
=============================

A VAE is trained under N(0, I), but its latents do not fill that Gaussian. A mixture fitted to
them afterwards draws better images, without training the VAE again.
"""

import fastlatent
from fastlatent import plots

run = fastlatent.load("vae-digits")
run.fit_prior("gmm", components=20)
for method in ("prior", "gmm"):
    picture = plots.samples(run.sample(36, method), f"samples: {method}")
    picture.show()
