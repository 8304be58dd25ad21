"""The CPU backend: builds kernels by TVM and LLVM, packs weights, links programs, reads tuning records."""
