"""What is read and written besides the canonical rows."""
