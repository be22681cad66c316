"""The fields of every annotation config, with the published runs' values."""

from ml_collections import ConfigDict, config_dict


def annotation_config(dataset: str) -> ConfigDict:
    """System A on TResNet-M at 448 px, as published for Corel-5k, ESP-Game and IAPR TC-12 (paper A, section 4).

    Args:
        dataset: "corel5k", "espgame", "iaprtc12", "vg500", "custom" or "scenes".
    """
    config = ConfigDict()
    config.task = "annotation"
    config.seed = 20
    config.epochs = 40
    config.batch_size = 32  # of all devices of all hosts together
    config.accumulate_steps = 1  # microbatches a step, where memory is short; batch norm sees one at a time
    config.ema_decay = 0.99
    config.mixup = False
    config.log_every = 20  # steps
    config.on_nonfinite = "stop"  # a NaN or infinite loss or gradient ends the run; or "skip": that step is left out
    config.max_skipped_steps = 10  # of a run; one more ends it
    config.published = ""  # row of aia_jax/metrics/published_results.py shown beside the measured ones
    config.init_from = ""  # workdir or PyTorch file whose whole model training starts from
    config.init_labels = "strict"  # of init_from: the data's; or by_name: others, or a file that lists a file's labels
    config.init_backbone = ""  # workdir, PyTorch file or "efficientnet_lite2" whose backbone training starts from

    config.mesh = ConfigDict()
    config.mesh.fsdp = 1  # devices that share one copy of weights, averages and optimiser state; divides their number

    config.data = data = ConfigDict()
    data.name = dataset
    data.root = (
        "datasets"  # holds Corel-5k/, ESP-Game/, IAPR-TC-12/, VG-500/; of custom data: what aia import-labels wrote
    )
    data.image_size = 448
    data.cache_dir = ""  # prepared copies; "": $AIA_JAX_CACHE, else ~/.cache/aia_jax
    data.placement = "host"  # or "device": the training split lives in device memory
    data.num_workers = 2  # processes that decode at preparation; 0: none
    data.flips = "both"  # random flips in training: both, horizontal or none
    data.skip_corrupt = False  # go on without unreadable images
    data.validation_fraction = 0.1  # of the training split, where eval.split is "validation"

    config.model = model = ConfigDict()
    model.backbone = "tresnet_m"
    model.native_padding = True  # EfficientNet-Lite pads as at its own resolution, whatever the image size
    model.input_statistics = True  # TResNet, bfloat16: statistics of widening convolutions from their inputs
    model.remat = False  # compute each block of the backbone again in the backward pass: less memory, more traffic
    model.freeze_backbone = False  # train the head alone, on feature maps that are computed once
    model.dtype = "bfloat16"  # of the computation; statistics, softmax and loss are float32
    model.param_dtype = "float32"
    model.head = "attention"
    model.hidden_size = 1024
    model.num_heads = 8
    model.num_layers = 1
    model.feedforward_size = 2048
    model.dropout = 0.1
    model.activation = "relu"
    model.norm_first = True
    model.self_attention = False
    model.keep_query_position = True

    data.feature_dtype = "float16"  # of the kept feature maps, with model.freeze_backbone; or "float32"

    config.loss = loss = ConfigDict()
    loss.name = "proposed"  # bce, focal, asymmetric or proposed
    for parameter in ("gamma_neg", "gamma_pos", "pos_margin", "neg_margin", "threshold"):
        loss[parameter] = config_dict.placeholder(float)  # None: the preset's

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"  # or "lamb", for very large batches
    optimizer.schedule = "one_cycle"
    optimizer.max_learning_rate = 1e-4
    optimizer.pct_start = 0.2
    optimizer.initial_div = 25.0
    optimizer.final_div = 1e4
    optimizer.beta1_base = 0.85
    optimizer.beta1_max = 0.95
    optimizer.beta2 = 0.999
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.0  # of LAMB; biases and batch norm do not decay
    optimizer.clip_norm = 0.0  # global norm; 0: gradients are not clipped

    config.eval = ConfigDict()
    config.eval.batch_size = 64
    config.eval.threshold = 0.5
    config.eval.split = "validation"  # where the best epoch is chosen; published runs chose on "test"
    config.eval.metric = "f1"

    config.checkpoint = ConfigDict()
    config.checkpoint.keep = 2  # newest ones, beside the best
    return config


def published_run(dataset: str) -> ConfigDict:
    """`annotation_config` with the test split choosing the epoch, as the published tables did."""
    config = annotation_config(dataset)
    config.published = f"attention_pooling/{dataset}"
    config.eval.split = "test"
    return config
