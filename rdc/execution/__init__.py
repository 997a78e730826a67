"""How tensor code is run: under transforms, autocast and budgets of memory; in somebody else's process."""
