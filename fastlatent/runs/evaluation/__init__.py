"""How good a model is: its losses on held-out images, and its images next to real ones."""
