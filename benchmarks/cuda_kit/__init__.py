"""What `python -m benchmarks.cuda` takes to a machine with a GPU: programs, seeded weights, a probe, and run.py."""
