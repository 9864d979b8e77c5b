"""What a trained model does better and worse than the one before, and how sure that is."""
