"""
Pixels under a mixture of logistics
===================================

PixelCNN++ gives each pixel a mixture of logistic distributions over 256 grey levels. The kernel
computes the exact log-probability and its gradient. Here a small network predicts the lower half
of a digit from the upper one.
"""

import math

import torch
from torch import nn

import fastlatent
from fastlatent import plots
from fastlatent.data import DataConfig
from fastlatent.ops import (
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_sample,
)

torch.manual_seed(0)
digits = fastlatent.data.load(DataConfig("digits", size=16))
images = digits.train.images(range(1024))  # uint8 (n, 1, 16, 16)
upper, lower = images[:, :, :8] / 255, images[:, :, 8:]
K = 5  # logistics in each mixture
net = nn.Sequential(nn.Flatten(), nn.Linear(128, 256), nn.ELU(), nn.Linear(256, 3 * K * 128))
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for step in range(301):
    params = net(upper).view(-1, 3 * K, 8, 16)
    loss = -discretized_logistic_mixture_log_prob(lower, params).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: {float(loss) / 128 / math.log(2):.2f} bits per pixel")

uniforms = torch.rand(16, 2, 8, 16)  # one chooses the logistic, one the grey level
with torch.no_grad():
    drawn = discretized_logistic_mixture_sample(net(upper[:16]).view(-1, 3 * K, 8, 16), uniforms)
whole = torch.cat([upper[:16], drawn / 255], 2)
picture = plots.samples(whole, "lower halves drawn")
picture.show()
