"""Kernels of CPUs as TIR, generated from an encoding, a level and a tile."""
