"""What callers hand in, checked: numbers, seeds, names of classes."""
