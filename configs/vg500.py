"""System A on VG-500 (82,904 / 10,000 images, 500 labels): TResNet-L v2 at 576 px.

    python train.py --config configs/vg500.py --workdir runs/vg500 --config.data.root=datasets \
        --config.init_backbone=tresnet_l_v2_miil_21k.pth

Needs `<root>/VG-500/` in the authors' layout or with SSGRL's lists (`aia prepare vg500 --root datasets` brings it,
about 30 GB on the way), 93 GB for the prepared copy, and GPUs or TPUs.
Where the training split (83 GB) fits into device memory: `--config.data.placement=device`.
Published, from ImageNet-21k-P weights: P 0.409, R 0.502, F1 0.451, N+ 477, mAP 42.515.

Large batches, `configs/vg500.py:large`: 1,024 images a step on the eight GPUs of a host,

    python train.py --config configs/vg500.py:large --workdir runs/vg500-large --config.data.root=datasets \
        --config.init_backbone=tresnet_l_v2_miil_21k.pth --xla_preset=multi_gpu

and 4,096 on four such hosts, the same command on each (workdir, data and cache on a file system that all see):

    python train.py --config configs/vg500.py:large --workdir runs/vg500-4096 --config.data.root=datasets \
        --config.init_backbone=tresnet_l_v2_miil_21k.pth --xla_preset=multi_gpu --config.batch_size=4096 \
        --distributed=HOST:1234 --num_processes=4 --process_id=I

or with --distributed=auto under SLURM or Kubernetes. Whatever the batch size:

- Learning rate: 1e-4 * sqrt(batch_size / 128), the square-root rule for Adam and LAMB (You et al., arXiv 1904.00962):
  2.8e-4 at 1,024, 5.7e-4 at 4,096. It rises over the first fifth of the run: eight epochs of warm-up.
- EMA decay: 1 - 0.001 * batch_size / 128, so that the average reaches back over as many images as the published one.
- 128 images a GPU take 40 GB of temporaries, by the program compiled for 8 H200s. Where there is less memory:
  --config.accumulate_steps=2 (or 4); batch norm then averages over 512 images (256) and not over all.
  --config.mesh.fsdp=8 splits the state's 0.9 GB.
- Above 4,096 try LAMB: --config.optimizer.name=lamb --config.optimizer.weight_decay=0.01
  --config.optimizer.max_learning_rate=0.01. It sets the length of each layer's update by that of its weights.

Nothing of this recipe was run: no VG-500, nor so many GPUs, were at hand. Tested, small and on CPUs, are its parts: the
mesh over two processes, microbatches, LAMB, and these rules.
"""

from configs.base import published_run


def get_config(recipe="published"):
    """`recipe`: "published" for the published hyper-parameters, "large" for batches of 1,024 and more."""
    if recipe not in ("published", "large"):
        raise ValueError(f"configs/vg500.py:{recipe} is unknown; known: published, large")
    config = published_run("vg500")
    config.data.image_size = 576
    config.model.backbone = "tresnet_v2_l"
    config.batch_size = 128
    config.ema_decay = 0.999
    config.loss.gamma_neg = 2.0  # of the proposed loss; another --config.loss.name wants --config.loss.gamma_neg=None
    if recipe == "large":
        config.batch_size = 1024
        times = config.get_oneway_ref("batch_size").to_float() / 128  # these follow --config.batch_size
        config.optimizer.max_learning_rate = 1e-4 * times**0.5
        config.ema_decay = 1 - 0.001 * times
    return config
