"""Fast latent-variable models in PyTorch: six model families on custom C++, CUDA and Triton kernels."""

__version__ = "0.1.0"
