"""What a server of the embedded model holds under load on the cores of this machine; `python -m benchmarks.load`."""
