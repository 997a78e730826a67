"""CIFAR-10 on a GPU, packed, trained, distilled and evaluated in boxes of minutes: python -m benchmarks.studies.cifar10 --help."""
