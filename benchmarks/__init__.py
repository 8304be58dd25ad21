"""Measure smc beside its peers: models, texts, speed, quality and compile time. Every script runs as a module:
`python -m benchmarks.models --help`."""
