"""Measurements against other software; each is a command of its own and no part of the package."""
