"""System C: SGRAF with Visual Semantic Loss, as published (Zhang et al., ICME 2023, arXiv 2304.10254).

python train.py --config configs/sgraf.py:f30k --workdir runs/f30k-saf --config.data.root=data
python train.py --config configs/sgraf.py:f30k,sgr --workdir runs/f30k-sgr --config.data.root=data
python eval.py --config configs/sgraf.py:f30k --weights runs/f30k-sgr --weights runs/f30k-saf --output runs/f30k-sgraf

coco and f30k need SCAN's precomputed features and captions, `<root>/f30k_precomp/{train,dev,test}_{ims.npy,caps.txt}`
(coco_precomp: testall), and `<root>/vocab/f30k_precomp_vocab.json`. They reach the rows of the paper's table, which
eval.py prints beside; not run here: the features could not be had. flickr8k is not of the paper: grid features of
EfficientNet-Lite2 that `aia features` makes of the photos, at widths that a CPU can train; its rows are in the README.
"""

from ml_collections import ConfigDict

_REASONINGS = ("saf", "sgr")


def get_config(argument: str = "f30k") -> ConfigDict:
    """The run of a data set, "coco", "f30k" or "flickr8k", optionally with ",sgr" or ",saf" (the default)."""
    name, _, reasoning = argument.partition(",")
    if name not in ("coco", "f30k", "flickr8k") or reasoning not in ("", *_REASONINGS):
        raise ValueError(f"configs/sgraf.py:{argument}: give coco, f30k or flickr8k, and ,sgr or ,saf behind it")
    config = retrieval_config(f"{name}_precomp", reasoning or "saf")
    if name == "flickr8k":
        config.epochs, config.optimizer.decay_epochs = 4, 3
        config.batch_size = 64
        config.optimizer.max_learning_rate = 5e-4
        config.model.num_features = 1280
        config.data.lengths = (24, 40)
        config.model.block, config.eval.block = 192, 1000
        config.model.embed_size, config.model.similarity_size = 256, 64
        return config
    config.published = f"vsl/{name}"
    if name == "coco":
        config.epochs, config.optimizer.decay_epochs = 25, 10
    else:
        config.epochs, config.optimizer.decay_epochs = (40, 25) if reasoning == "sgr" else (30, 15)
    return config


def retrieval_config(dataset: str, reasoning: str) -> ConfigDict:
    """The fields of every retrieval config, with the paper's values.

    Args:
        dataset: a folder in SCAN's layout, or "scenes".
        reasoning: "sgr" or "saf".
    """
    config = ConfigDict()
    config.task = "retrieval"
    config.seed = 1
    config.epochs = 30
    config.batch_size = 128  # pairs of all devices of all hosts together
    config.accumulate_steps = 1
    config.ema_decay = 0.0  # no average of the weights
    config.log_every = 50  # steps
    config.on_nonfinite = "stop"  # a NaN or infinite loss or gradient ends the run; or "skip": that step is left out
    config.max_skipped_steps = 10  # of a run; one more ends it
    config.published = (
        ""  # "vsl/coco" or "vsl/f30k": rows of aia_jax/metrics/published_results.py shown beside the measured ones
    )
    config.init_from = ""  # workdir or PyTorch file whose whole model training starts from
    config.init_backbone = ""  # as of annotation, where a backbone is trained with the rest

    config.mesh = ConfigDict()
    config.mesh.fsdp = 1  # devices that share one copy of weights and optimiser state; divides their number

    config.data = data = ConfigDict()
    data.name = dataset
    data.root = "data"  # holds the folder and vocab/
    data.vocabulary = ""  # file; "": <root>/vocab/<name>_vocab.json
    data.photos = ""  # folder of the photos that retrieval.png shows; their names lie beside the features
    data.lengths = (16, 24, 32, 48, 64)  # that captions are padded to: one program each
    data.flips = "none"  # of images, where a backbone is trained with the rest

    config.model = model = ConfigDict()
    model.reasoning = reasoning  # sgr: similarity graph reasoning, saf: similarity attention filtration
    model.embed_size = 1024
    model.word_size = 300
    model.similarity_size = 256
    model.num_regions = 36
    model.num_features = 2048
    model.backbone = ""  # "": features are given
    model.block = 4096  # pairs in training whose alignments are in memory at once, on each device
    model.recompute = True  # the alignments in the backward pass: less memory, more work
    model.dtype = "float32"  # of the computation; norms, softmax and losses are float32
    model.param_dtype = "float32"

    config.loss = loss = ConfigDict()
    loss.margin = 0.2
    loss.hardest = True  # of the negatives the worst alone
    loss.visual = True  # Visual Semantic Loss
    loss.textual = False  # the paper's ablation, added to the others

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"
    optimizer.schedule = "step"
    optimizer.max_learning_rate = 3e-4
    optimizer.decay_epochs = 15  # epochs after which the rate falls, again and again
    optimizer.decay_factor = 0.1
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.999
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.0
    optimizer.clip_norm = 2.0

    config.eval = ConfigDict()
    config.eval.batch_size = 128  # captions, or images to encode
    config.eval.block = 8192  # as model.block, in evaluation
    config.eval.split = "validation"
    config.eval.metric = "rsum"

    config.checkpoint = ConfigDict()
    config.checkpoint.keep = 2  # newest ones, beside the best
    return config
