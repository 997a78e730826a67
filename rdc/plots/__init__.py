"""Pictures drawn by matplotlib, for files."""
