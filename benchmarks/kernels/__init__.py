"""Microbenchmarks of every kernel: `python -m benchmarks.kernels`."""
