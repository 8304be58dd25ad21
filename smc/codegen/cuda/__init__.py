"""NVIDIA GPUs: kernels in CUDA C++ (device/), generated calls of them, machine code by NVRTC."""
