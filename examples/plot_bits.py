"""
Images from random bits
=======================

The Latent Bernoulli Autoencoder turns an image into 64 bits. Fair coin flips in their place
decode to scribbles. A copula draws bits with the pair moments of the training codes instead.
"""

import fastlatent
from fastlatent import plots

run = fastlatent.load("lbae-digits")
for method in ("random", "copula"):
    picture = plots.samples(run.sample(36, method), method)
    picture.show()
