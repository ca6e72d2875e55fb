"""Shaped links between processes of one machine: `python -m benchmarks.testbed --help`."""
