"""Argilla: how it is reached, and a server of its own on this machine."""
