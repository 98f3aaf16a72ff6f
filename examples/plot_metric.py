"""
Where a decoder stretches its latents
=====================================

The volume of the pull-back metric tells how fast the image changes around a point of latent
space. Here it is drawn over a plane through the latents of three test images.
"""

import matplotlib.pyplot as plt
import torch

import fastlatent
from fastlatent.geometry import log_volume, pullback_metric

run = fastlatent.load("vae-digits")
corner, right, up = run.encode(run.data.test.images([3, 57, 107]))
s = torch.linspace(-0.5, 1.5, 60)
across, along = torch.meshgrid(s, s, indexing="xy")
plane = corner + across[..., None] * (right - corner) + along[..., None] * (up - corner)
volume = log_volume(pullback_metric(run.metric(), plane.flatten(0, 1))).view(60, 60)

plt.imshow(volume, origin="lower", extent=(-0.5, 1.5, -0.5, 1.5))
plt.colorbar(label="log volume")
plt.plot([0, 1, 0], [0, 0, 1], "wo", label="test images")
plt.legend()
plt.show()
