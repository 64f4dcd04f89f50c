"""A run's folder as a coding agent works in it: made by ``autokernel init``, one experiment at a time by ``try``."""
