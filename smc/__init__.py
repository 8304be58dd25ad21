"""smc: a compiler for small language models."""
