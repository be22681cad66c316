"""System A on IAPR-TC-12 (17,665 training and 1,962 test images, 291 labels), as published.

    aia train --config iaprtc12 --workdir runs/iaprtc12 --config.data.root=datasets \
        --config.init_backbone=tresnet_m_miil_in21k.pth

Needs `<root>/IAPR-TC-12/{train,test}.json` and `images/` (from `aia prepare iaprtc12 --root datasets`), and one GPU.
Published results with ImageNet-21k-P weights: P 0.515, R 0.584, F1 0.547, N+ 287.
"""

from aia_jax.configs.base import published_run


def get_config():
    """Returns the config with the published hyper-parameters."""
    return published_run("iaprtc12")
