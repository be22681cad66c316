"""System C: SGRAF with Visual Semantic Loss, as published (Zhang et al., ICME 2023, arXiv 2304.10254).

    aia train --config sgraf:f30k --workdir runs/f30k-saf --config.data.root=data
    aia train --config sgraf:f30k,sgr --workdir runs/f30k-sgr --config.data.root=data
    aia evaluate --config sgraf:f30k --weights runs/f30k-sgr --weights runs/f30k-saf \
        --output runs/f30k-sgraf

coco, f30k: Need SCAN's precomputed features and captions, `<root>/f30k_precomp/{train,dev,test}_{ims.npy,caps.txt}`,
and `<root>/vocab/f30k_precomp_vocab.json`. For coco, `coco_precomp` replaces `f30k_precomp`; `testall` replaces `test`.
The command `aia evaluate` also prints the results in the paper's table. Not run yet: the features were not available.
flickr8k: Not in the paper. Uses grid features of EfficientNet-Lite2, which `aia features` makes from photos. The model
is small enough for a CPU. The sum of the six recalls is 68.5 (SAF), 75.4 (SGR) and 78.6 (both); see docs/retrieval.md.
"""

from aia_jax.configs.base import run_config


def get_config(argument="f30k"):
    """Returns the config. `argument` is "coco", "f30k" or "flickr8k"; the suffix ",sgr" selects SGR instead of SAF."""
    name, _, reasoning = argument.partition(",")
    if name not in ("coco", "f30k", "flickr8k") or reasoning not in ("", "saf", "sgr"):
        raise ValueError(f"--config sgraf:{argument}: give coco, f30k or flickr8k, and ,sgr or ,saf behind it")
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
    elif reasoning == "sgr":
        config.epochs, config.optimizer.decay_epochs = 40, 25
    return config


def retrieval_config(dataset, reasoning):
    """Returns the config of retrieval for a folder in SCAN's layout or "scenes". `reasoning` is "sgr" or "saf"."""
    config = run_config("retrieval", dataset)
    config.batch_size = 128

    data = config.data
    data.root = "data"  # contains the data set's folder and vocab/
    data.vocabulary = ""  # file; "": <root>/vocab/<name>_vocab.json
    data.photos = ""  # folder of the photos for retrieval.png; the file names are in a file beside the features
    data.captions_per_image = 0  # captions of each image; 0: read from the numbers of rows and captions
    data.lengths = (16, 24, 32, 48, 64)  # captions are padded to one of these lengths; JAX compiles a program for each
    data.flips = "none"  # random flips of images, only if a backbone is trained too

    model = config.model
    model.reasoning = reasoning  # sgr: similarity graph reasoning, saf: similarity attention filtration
    model.text = "gru"  # minilm: outputs of the frozen MiniLM for each word piece replace word vectors and GRU
    model.embed_size = 1024
    model.word_size = 300
    model.similarity_size = 256
    model.num_regions = 36
    model.num_features = 2048
    model.block = 4096  # number of (image, caption) pairs in memory at once in training, per device
    model.recompute = True  # recompute the alignment vectors in the backward pass, to save memory

    config.loss.margin = 0.2
    config.loss.hardest = True  # use only the hardest negative of each image and of each caption
    config.loss.visual = True  # Visual Semantic Loss
    config.loss.textual = False  # the textual loss in the ablation study of the paper

    optimizer = config.optimizer
    optimizer.schedule = "step"
    optimizer.max_learning_rate = 3e-4
    optimizer.decay_epochs = 15  # epochs between two decays of the learning rate
    optimizer.decay_factor = 0.1
    optimizer.beta1 = 0.9
    optimizer.clip_norm = 2.0

    config.eval.batch_size = 128
    config.eval.block = 8192  # the same as model.block, but in evaluation
    config.eval.metric = "rsum"
    return config
