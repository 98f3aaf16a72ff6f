"""
From one digit to another
=========================

Each row leads from one test image to another, by steps of equal size in the latents of a VAE.
"""

import fastlatent
from fastlatent import plots

run = fastlatent.load("vae-digits")
test = run.data.test
start, end = test.images([3, 20, 41]) / 255, test.images([57, 70, 107]) / 255
walks = run.interpolate(start, end, "spherical", steps=10)
picture = plots.walks(start, walks.cpu(), end, "spherical interpolation")
picture.show()
