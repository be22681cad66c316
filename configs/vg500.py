"""System A on VG-500 (82,904 / 10,000 images, 500 labels): TResNet-L v2 at 576 px.

    python train.py --config configs/vg500.py --workdir runs/vg500 --config.data.root=datasets \
        --config.init_backbone=tresnet_l_v2_miil_21k.pth

Needs `<root>/VG-500/` in the authors' layout or with SSGRL's lists, 93 GB for the prepared copy, and GPUs or TPUs.
Where the training split (83 GB) fits into device memory: `--config.data.placement=device`.
Published, from ImageNet-21k-P weights: P 0.409, R 0.502, F1 0.451, N+ 477, mAP 42.515.
"""

from configs.common import published_run


def get_config():
    """The published hyper-parameters."""
    config = published_run("vg500")
    config.data.image_size = 576
    config.model.backbone = "tresnet_v2_l"
    config.batch_size = 128
    config.ema_decay = 0.999
    config.loss.gamma_neg = 2.0  # of the proposed loss; another --config.loss.name wants --config.loss.gamma_neg=None
    return config
