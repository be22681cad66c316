"""System A on ESP-Game (18,689 training and 2,081 test images, 268 labels), as published.

    aia train --config espgame --workdir runs/espgame --config.data.root=datasets \
        --config.init_backbone=tresnet_m_miil_in21k.pth

Needs `<root>/ESP-Game/{train,test}.json` and `images/` (from `aia prepare espgame --root datasets`), and one GPU.
Published results with ImageNet-21k-P weights: P 0.442, R 0.500, F1 0.470, N+ 262.
"""

from aia_jax.configs.base import published_run


def get_config():
    """Returns the config with the published hyper-parameters."""
    return published_run("espgame")
