"""Running on more than one machine, and asking what a machine would do without having it."""
