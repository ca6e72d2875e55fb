"""The studies of docs/results.md, one command each: `python -m benchmarks.studies --help`."""
