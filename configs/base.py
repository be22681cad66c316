"""The config fields of all systems, and the fields of annotation. docs/configs.md describes all fields."""

from ml_collections import ConfigDict, config_dict

# How photos are prepared, for the configs that read photos.
PREPARATION = {
    "cache_dir": "",  # folder of the prepared copies; "": $AIA_JAX_CACHE or, if unset, ~/.cache/aia_jax
    "num_workers": 0,  # threads that decode photos; 0: one for each core
    "skip_corrupt": False,  # ignore unreadable photos; False: stop and list them
    "validation_fraction": 0.1,  # fraction of the training split for validation, if eval.split is "validation"
}

# PyTorch's OneCycleLR, as in the papers of annotation (systems A and B).
ONE_CYCLE = {
    "schedule": "one_cycle",
    "pct_start": 0.2,  # fraction of the steps in which the learning rate rises
    "initial_div": 25.0,  # the first learning rate is the highest one divided by this
    "final_div": 1e4,  # the last learning rate is the first one divided by this
    "beta1_base": 0.85,  # beta1 at the highest learning rate
    "beta1_max": 0.95,  # beta1 at the first and the last step
}


def run_config(task: str, dataset: str) -> ConfigDict:
    """Returns the fields of all systems. `task` is "annotation", "retrieval" or "search"."""
    config = ConfigDict()
    config.task = task
    config.seed = 1
    config.epochs = 30
    config.batch_size = 64  # rows in a batch, over all devices of all hosts
    config.accumulate_steps = 1  # microbatches in a step, to save memory; batch norm uses one microbatch at a time
    config.ema_decay = 0.0  # decay of the moving average of the weights; 0: no average
    config.log_every = 50  # steps between two lines of metrics.jsonl
    config.on_nonfinite = "stop"  # a NaN or infinite loss or gradient ends the run; "skip": skips the step
    config.max_skipped_steps = 10  # largest number of skipped steps; one more ends the run
    config.published = ""  # key in aia_jax/metrics/published_results.py: published results to print too
    config.init_from = ""  # workdir, model folder or PyTorch file of a complete model to start from
    config.init_backbone = ""  # workdir, PyTorch file or "efficientnet_lite2" of a backbone to start from
    config.weights_key = ""  # the set of weights in a PyTorch file that has several, such as "state_dict_ema"
    config.mesh = ConfigDict({"fsdp": 1})  # number of devices that share one copy of the state
    config.data = ConfigDict({"name": dataset, "root": "datasets"})
    config.model = ConfigDict({"backbone": "", "dtype": "float32", "param_dtype": "float32"})
    config.loss = ConfigDict()
    config.optimizer = optimizer = ConfigDict({"name": "adam", "beta2": 0.999, "eps": 1e-8})
    optimizer.max_learning_rate = 1e-3
    optimizer.weight_decay = 0.0  # only for LAMB; not for biases and normalisation layers
    optimizer.clip_norm = 0.0  # largest global norm of the gradients; 0: no clipping
    config.eval = ConfigDict({"batch_size": 64, "split": "validation"})  # the best epoch is chosen on this split
    config.eval.epoch = "best"  # the epoch to use: the "best" on eval.split, or the "last"
    config.checkpoint = ConfigDict({"keep": 2})  # number of newest checkpoints to keep, besides the best
    return config


def annotation_config(dataset: str) -> ConfigDict:
    """Returns system A as published for Corel-5k, ESP-Game and IAPR TC-12: TResNet-M at 448 px.

    `dataset` is "corel5k", "espgame", "iaprtc12", "vg500", "custom" or "scenes". Source: Salar & Ahmadi 2024, sec. 4.
    """
    config = run_config("annotation", dataset)
    config.seed = 20
    config.epochs = 40
    config.batch_size = 32
    config.ema_decay = 0.99
    config.mixup = False
    config.log_every = 20
    config.init_labels = "strict"  # init_from must have the same labels as the data; other values: docs/configs.md

    data = config.data
    data.update(PREPARATION)
    data.image_size = 448
    data.placement = "host"  # training images: in memory of the "host" or "device"; "stream": decoded in each step
    data.flips = "both"  # random flips in training: "both", "horizontal" or "none"
    data.feature_dtype = "float16"  # or "float32": type of cached feature maps, with model.freeze_backbone

    model = config.model
    model.backbone = "tresnet_m"
    model.native_padding = True  # EfficientNet-Lite: padding for the image size of its ImageNet weights
    model.input_statistics = True  # TResNet in bfloat16: batch norm reads fewer bytes; see docs/configs.md
    model.remat = False  # recompute each block of the backbone in the backward pass, to save memory
    model.freeze_backbone = False  # train only the head, on cached feature maps
    model.dtype = "bfloat16"  # dtype of the computation; statistics, softmax and loss are float32
    model.head = "attention"
    model.hidden_size = 1024
    model.num_heads = 8
    model.num_layers = 1
    model.feedforward_size = 2048
    model.dropout = 0.1
    model.score = "sigmoid"  # a score for each label; "softmax": of classifiers that know one label for each image
    model.activation = "relu"
    model.norm_first = True
    model.self_attention = False
    model.keep_query_position = True

    config.loss.name = "proposed"  # bce, focal, asymmetric or proposed
    for parameter in ("gamma_neg", "gamma_pos", "pos_margin", "neg_margin", "threshold"):
        config.loss[parameter] = config_dict.placeholder(float)  # None: the default value of the loss

    config.optimizer.update(ONE_CYCLE)
    config.optimizer.max_learning_rate = 1e-4
    config.eval.threshold = 0.5
    config.eval.metric = "f1"
    return config


def published_run(dataset: str) -> ConfigDict:
    """Returns `annotation_config`, but selects the best epoch on the test split, as the published runs do."""
    config = annotation_config(dataset)
    config.published = f"attention_pooling/{dataset}"
    config.eval.split = "test"
    return config
