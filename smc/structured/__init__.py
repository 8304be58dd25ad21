"""Text of a given form: JSON schemas, regular expressions, grammars, and calls of functions.

llguidance says which tokens may come next. It was chosen by measurement: for SmolLM2's 49,152 tokens and a small schema
a mask takes 84 µs on average and a grammar 0.8 ms; xgrammar takes 12 µs and 40 ms, but needs torch where it runs.
"""
