"""Pictures from files, and pixels as the method takes them."""
