"""The methods' equations as pure functions over tensors and floats. No Lightning, no timm, no modules."""
