"""Experiments on the latents of trained models, as commands run them."""
