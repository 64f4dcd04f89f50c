"""The commands of the command line, each thin: parse, call the library, print. Heavy imports stay inside functions."""
