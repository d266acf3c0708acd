"""Influence-based unlearning for PyTorch: a plain library that knows nothing of the service around it."""
