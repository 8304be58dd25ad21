"""Structured answers: JSON schemas, regular expressions, grammars, and calls of functions.

llguidance computes which tokens are allowed next. For SmolLM2's 49,152 tokens and a small schema that takes 84 µs per
token on average and 0.8 ms per grammar. xgrammar takes 12 µs and 40 ms, but needs torch where the model runs.
"""
