"""autokernel: makes a PyTorch model faster while its owner sleeps."""

__version__ = "0.1.0"
