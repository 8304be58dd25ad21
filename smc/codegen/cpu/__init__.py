"""The CPU backend: builds kernels with TVM and LLVM, packs weights, links programs, reads tuning records."""
