"""Compares the prediction step of this project with PyTorch's, in images per second.

    python -m benchmarks.infer --config configs/corel5k.py --config.batch_size=128 --output infer.json

Both sides start from uint8 images on the first device and end with scores. The PyTorch side is timm's backbone with the
same head, in NCHW and channels_last, eager and compiled, with autocast if the config computes in bfloat16. Needs only
jax, flax, optax, ml_collections, torch and timm.
"""

from benchmarks import comparison

if __name__ == "__main__":
    comparison.command(__doc__, inference=True)
