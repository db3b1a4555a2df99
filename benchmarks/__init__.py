"""The library beside the plain calls it stands on and beside its peers: `python -m benchmarks`."""
