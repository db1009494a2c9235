"""Benchmarks. Each prints a table with the share of the physical limit and writes JSON to benchmarks/results/."""
