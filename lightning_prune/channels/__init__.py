"""Channel graph of a model, and exact removal of channels. Imports neither Lightning nor timm."""
