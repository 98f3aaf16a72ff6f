"""A model at work on images: passes over a split, latents, draws, walks and their pictures."""
