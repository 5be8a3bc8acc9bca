"""Triton twins of single operations, one a file. Knows no model; importing it imports no Triton."""

__version__ = "0.1.0"
