"""Single operations, one a file, each beside its truth in plain torch. Knows no model; imports no Triton."""

__version__ = "0.1.0"
