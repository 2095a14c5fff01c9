"""Kernels for NVIDIA GPUs: `cuda_src`, compiled by NVRTC, launched through cuda-python."""
