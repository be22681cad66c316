"""The training step: images a second of this project and of PyTorch, side by side.

    python -m benchmarks.train --config configs/corel5k.py --config.batch_size=128 --output train.json

Both sides start from uint8 images on the first device: flips, normalisation, model, loss, gradients, Adam, averages.
PyTorch's is timm's body with the same head, NCHW and channels_last, plain and compiled, by autocast where the config
computes in bfloat16. Needs jax, flax, optax, ml_collections, torch and timm, no other requirement of this project.
"""

from benchmarks import comparison

if __name__ == "__main__":
    comparison.command(__doc__, inference=False)
