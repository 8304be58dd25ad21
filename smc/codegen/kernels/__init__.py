"""What kernels compute, as data that every backend shares: specs, constants, groups, the layout of weights."""
