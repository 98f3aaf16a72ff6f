"""Fast latent-variable models in PyTorch, on custom C++, CUDA and Triton kernels."""

__version__ = "0.1.0"
