"""Back into the model: kernels that a run won, put in place of the regions they were won for."""
