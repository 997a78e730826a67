"""Where a figure comes from: source, versions, backends, weights."""
