"""System A on VG-500 (82,904 training and 10,000 test images, 500 labels), as published: TResNet-L v2 at 576 px.

    aia train --config vg500 --workdir runs/vg500 --config.data.root=datasets \
        --config.init_backbone=tresnet_l_v2_miil_21k.pth

Needs GPUs or TPUs, 93 GB of disk for the resized photos, and `<root>/VG-500/` with the files of the authors or of
SSGRL. `aia prepare vg500 --root datasets` downloads about 30 GB. If the training split (83 GB) fits into device memory,
add `--config.data.placement=device`. Without the disk space for the resized photos, write records of the original
photos (at most 15 GB) and decode them in each step:

    aia prepare vg500 --root datasets --output records
    aia train --config vg500 --workdir runs/vg500 --config.data.root=records --config.data.placement=stream \
        --config.init_backbone=tresnet_l_v2_miil_21k.pth

Published results with ImageNet-21k-P weights: P 0.409, R 0.502, F1 0.451, N+ 477, mAP 42.515.

`vg500:large` uses large batches, 1,024 images per step on the eight GPUs of a host:

    aia train --config vg500:large --workdir runs/vg500-large --config.data.root=datasets \
        --config.init_backbone=tresnet_l_v2_miil_21k.pth --xla_preset=multi_gpu

For 4,096 images on four such hosts, add `--config.batch_size=4096 --distributed=HOST:1234 --num_processes=4
--process_id=I` and run the command on each host, or add --distributed=auto under SLURM or Kubernetes. All hosts need
access to the workdir, the data and the cache. For each batch size:

- Learning rate: 1e-4 * sqrt(batch_size / 128), the square-root rule for Adam and LAMB (You et al., arXiv 1904.00962):
  2.8e-4 for 1,024 and 5.7e-4 for 4,096. The first eight epochs, a fifth of the run, are the warm-up.
- EMA decay: 1 - 0.001 * batch_size / 128, so that the average covers as many images as in the published run.
- Memory: 128 images per GPU need 40 GB of temporary memory (in the program compiled for eight H200s). With less memory,
  set --config.accumulate_steps=2 or 4. Batch norm then averages over 512 or 256 images. --config.mesh.fsdp=8 splits the
  0.9 GB of the state over 8 devices.
- Above 4,096, try LAMB: --config.optimizer.name=lamb --config.optimizer.weight_decay=0.01
  --config.optimizer.max_learning_rate=0.01. LAMB scales the update of each layer by the norm of its weights.

`large` has not been run: neither VG-500 nor so many GPUs were available. The tests cover its parts at small sizes on
CPUs: the mesh over two processes, microbatches, LAMB and these rules.
"""

from aia_jax.configs.base import published_run


def get_config(recipe="published"):
    """Returns the config. `recipe` is "published", or "large" for batches of 1,024 images and more."""
    if recipe not in ("published", "large"):
        raise ValueError(f"--config vg500:{recipe} is unknown; known: published, large")
    config = published_run("vg500")
    config.data.image_size = 576
    config.model.backbone = "tresnet_v2_l"
    config.batch_size = 128
    config.ema_decay = 0.999
    config.loss.gamma_neg = 2.0  # of the proposed loss; with another loss set --config.loss.gamma_neg=None
    if recipe == "large":
        config.batch_size = 1024
        scale = config.get_oneway_ref("batch_size").to_float() / 128  # follows --config.batch_size
        config.optimizer.max_learning_rate = 1e-4 * scale**0.5
        config.ema_decay = 1 - 0.001 * scale
    return config
