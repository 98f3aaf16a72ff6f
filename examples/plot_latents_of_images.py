"""
Images without an encoder
=========================

GLO learns a generator and one latent vector for each training image. It has no encoder: the
latents of a new image are searched for by gradient steps through the generator.
"""

import fastlatent
from fastlatent import plots

run = fastlatent.load("glo-digits")
images = run.data.test.images(run.data.test.spread(8)) / 255
picture = plots.reconstructions(
    images, run.reconstruct(images).cpu(), "test images, fitted latents"
)
picture.show()
