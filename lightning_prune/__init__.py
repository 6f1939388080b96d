"""Pruning callbacks for PyTorch Lightning that work on any timm model."""
