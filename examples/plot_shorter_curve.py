"""
A shorter curve between two images
==================================

The decoder bends latent space: a straight line of latents can be a long way in images. `geodesic`
finds a curve that is shorter there, by the metric that the decoder pulls back.
"""

import fastlatent
from fastlatent import plots
from fastlatent.geometry import equal_steps, geodesic, straight

run = fastlatent.load("vae-digits")
start, end = run.encode(run.data.test.images([3, 57]))
found = geodesic(run.metric(), start[None], end[None])
print(f"the curve is {float(found.improvement[0]):.1%} shorter than the straight line")

curves = {"straight": straight(start[None], end[None]), "geodesic": found.curves}
for name, curve in curves.items():
    z = curve.points(equal_steps(run.metric(), curve, 10))
    picture = plots.grid(run.decode(z[0]).cpu(), 10, name)
    picture.show()
