"""Networks as flax.nnx modules: backbones, heads, and complete models. This package has no training code."""
