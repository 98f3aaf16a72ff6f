"""
How many images does a Frechet distance need?
=============================================

The Frechet distance of a few images is too large and has a wide error. Both shrink as images are
added. Two halves of one set show it: their true distance is 0.
"""

import matplotlib.pyplot as plt
import torch

from fastlatent.metrics import fid

torch.manual_seed(0)
features = torch.randn(8000, 32)  # in place of features of images
counts = [100, 200, 500, 1000, 2000, 4000]
found = [fid(features[:n], features[4000 : 4000 + n], features=lambda x: x) for n in counts]
plt.errorbar(counts, [d.value for d in found], [d.error for d in found], marker="o", capsize=3)
plt.xscale("log")
plt.xlabel("images of each set")
plt.ylabel("Frechet distance")
plt.show()
