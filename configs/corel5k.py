"""System A on Corel-5k (4,500 training and 499 test images, 260 labels), as published.

    aia train --config corel5k --workdir runs/corel5k --config.data.root=datasets \
        --config.init_backbone=tresnet_m_miil_in21k.pth

Needs `<root>/Corel-5k/{train,test}.json` and `images/` (from `aia prepare corel5k --root datasets`), and one GPU.
Published results with ImageNet-21k-P weights: P 0.453, R 0.611, F1 0.520, N+ 202.
"""

from aia_jax.configs.base import published_run


def get_config():
    """Returns the config with the published hyper-parameters."""
    return published_run("corel5k")
