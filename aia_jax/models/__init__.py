"""Networks as flax.nnx modules: backbones, heads and the annotators made of them. No training code lives here."""
