"""The whole way on embedded data: a tiny annotator on drawn scenes, minutes on a CPU.

python train.py --config configs/demo.py --workdir runs/demo
"""

from configs.base import annotation_config


def get_config():
    """Scenes at 96 px, a three-stage TResNet and a small attention-pooling head."""
    config = annotation_config("scenes")
    config.seed = 1
    config.epochs = 14
    config.batch_size = 16
    config.data.image_size = 96
    config.data.num_workers = 0
    config.data.num_train = 2900
    config.data.num_test = 400
    config.data.seed = 7
    config.data.validation_fraction = 0.1
    config.model.backbone = "tresnet_tiny"
    config.model.dtype = "float32"
    config.model.hidden_size = 128
    config.model.num_heads = 4
    config.model.feedforward_size = 256
    config.model.dropout = 0.0
    config.loss.name = "bce"
    config.optimizer.max_learning_rate = 1.5e-3
    config.ema_decay = 0.95
    return config
