"""What a person sees in a terminal: progress bars, texts that can be printed."""
