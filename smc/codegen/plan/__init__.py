"""Plan: what a program computes, as kernels on buffers in dependency order. It knows no machine."""
