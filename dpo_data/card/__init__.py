"""The cards of what is published: what the dataset or the model is, how it was made, and what to know before it is used."""
