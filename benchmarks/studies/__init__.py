"""One measurement each, behind a page of docs/ or a shipped file: python -m benchmarks.studies.NAME --help."""
