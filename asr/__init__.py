"""The models: tensors in, tensors out. Knows no clock, no socket and no event."""
