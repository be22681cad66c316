"""System B: TResNet-M with the improved loss, on Corel-5k, ESP-Game or IAPR TC-12, as published.

    aia train --config improved_loss:corel5k --workdir runs/b-corel5k --config.data.root=datasets \
        --config.init_backbone=tresnet_m.pth
    aia evaluate --config improved_loss:corel5k --workdir runs/b-corel5k --config.data.root=datasets \
        --config.init_backbone=tresnet_m.pth --thresholds mcc

Needs `<root>/<dataset>/{train,test}.json` and `images/` (`aia prepare corel5k --root datasets` downloads them), the
ImageNet-1k weights of TResNet-M, and one GPU. Other losses: --config.loss.name=bce|focal|asymmetric.
Published results, with threshold 0.5 (left) and with MCC thresholds (right):

    corel5k   P 0.466 R 0.554 F1 0.506 N+ 189     P 0.484 R 0.563 F1 0.520 N+ 191
    iaprtc12  P 0.503 R 0.562 F1 0.531 N+ 285     P 0.562 R 0.515 F1 0.537 N+ 277
    espgame   P 0.423 R 0.484 F1 0.452 N+ 261     P 0.508 R 0.421 F1 0.461 N+ 255
"""

from aia_jax.configs.base import published_run


def get_config(dataset="corel5k"):
    """Returns the config. `dataset` is "corel5k", "espgame" or "iaprtc12"."""
    if dataset not in ("corel5k", "espgame", "iaprtc12"):
        raise ValueError(f"--config improved_loss:{dataset} is unknown; known: corel5k, espgame, iaprtc12")
    config = published_run(dataset)
    config.seed = 1
    config.model.head = "gap"
    config.model.dropout = 0.3
    config.published = f"improved_loss/{dataset}"
    return config
