"""System D: AMC, image search by attention to regions and keywords (Chen et al., CVPR 2017, arXiv 1704.00763).

python train.py --config configs/corel5k_lite.py:gap --config.data.image_size=192 --config.eval.split=validation \\
    --config.data.root=datasets --workdir runs/lite
python train.py --config configs/amc.py:corel5k --workdir runs/amc --config.data.root=datasets \\
    --config.data.annotator=runs/lite

clickture, coco: files in the layout of aia_jax/data/search/clicks.py; not run here, the data could not be had.
corel5k: label words are queries; maps and keywords are those of a trained annotator, which sees the same split.
The authors published neither a model nor its sizes: fields marked "ours" are our choice.
"""

from ml_collections import ConfigDict


def get_config(dataset: str = "corel5k") -> ConfigDict:
    """The run of "corel5k", "clickture" or "coco"."""
    if dataset not in ("corel5k", "clickture", "coco"):
        raise ValueError(f"configs/amc.py:{dataset} is unknown; known: corel5k, clickture, coco")
    config = search_config(dataset)
    if dataset == "corel5k":
        config.epochs = 2
        config.model.embed_size = 256
        config.model.word_size = 128
        # What configs/corel5k_lite.py:gap says of its own training images has precision 0.66 and recall 0.98, of the
        # validation images 0.42 and 0.66: so noisy are the keywords made that training sees.
        config.data.keywords_left_out, config.data.keywords_added = 0.35, 0.4
        return config
    config.data.held_out = 0.0  # the test's queries are others than training's
    config.data.max_keywords = 20
    config.model.dtype = "bfloat16"
    config.batch_size = 256
    if dataset == "coco":
        config.eval.split = "test"  # there are no keywords of other images
    return config


def search_config(dataset: str) -> ConfigDict:
    """The fields of every search config.

    Args:
        dataset: an annotated data set, whose label words are the queries; or "clickture" or "coco".
    """
    config = ConfigDict()
    config.task = "search"
    config.seed = 1
    config.epochs = 10
    config.batch_size = 64  # pairs of a query and a right image, of all devices of all hosts together
    config.accumulate_steps = 1
    config.ema_decay = 0.0  # no average of the weights
    config.log_every = 50  # steps
    config.on_nonfinite = "stop"  # a NaN or infinite loss or gradient ends the run; or "skip": that step is left out
    config.max_skipped_steps = 10  # of a run; one more ends it
    config.published = ""
    config.init_from = ""  # workdir whose whole model training starts from
    config.init_backbone = ""  # none here: maps are given

    config.mesh = ConfigDict()
    config.mesh.fsdp = 1  # devices that share one copy of weights and optimiser state; divides their number

    config.data = data = ConfigDict()
    data.name = dataset
    data.root = "datasets"
    data.annotator = ""  # folder of an annotation run: its backbone makes the maps, its labels are keywords
    data.keywords = "annotator"  # what it predicts, or "labels": the true ones
    data.keyword_threshold = 0.5  # score from which a label is a keyword; ours
    data.max_keywords = 10  # of an image, the highest scores first; ours
    data.keywords_left_out = 0.0  # share of an image's keywords in training; ours
    data.keywords_added = 0.0  # share of another image's keywords that join them in training; ours
    data.query_words = 3  # most label words of a query; ours
    data.held_out = 0.2  # of the queries of several words, that training does not see; ours
    data.negatives = 0  # t, wrong images drawn for each query from its batch; 0: all of them
    data.feature_dtype = "float16"  # of the kept maps, or "float32"
    data.cache_dir = ""  # prepared copies; "": $AIA_JAX_CACHE, else ~/.cache/aia_jax
    data.num_workers = 2  # processes that decode at preparation; 0: none
    data.skip_corrupt = False  # go on without unreadable images
    data.validation_fraction = 0.1  # of the training split, where eval.split is "validation"
    data.split_seed = 1  # of that part: the annotator's `seed`, so that both see the same images

    config.model = model = ConfigDict()
    model.backbone = ""  # maps are given
    model.modalities = "both"  # or "visual", "keywords"
    model.visual_attention = True  # VAN
    model.keyword_attention = True  # LAN
    model.modality_attention = True  # MTN
    model.word_size = 300  # ours
    model.word_vectors = ""  # text file of vectors of that size that the queries' words start from, as GloVe's; ours
    model.embed_size = 512  # ours
    model.kernel_size = 3  # ours
    model.block = 4096  # pairs in training that are in memory at once, on each device
    model.recompute = False  # the attention in the backward pass: less memory, more work
    model.dtype = "float32"  # of the products
    model.param_dtype = "float32"

    config.loss = ConfigDict()
    config.loss.margin = 0.1  # ours

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"  # ours, with all its numbers
    optimizer.schedule = "one_cycle"
    optimizer.max_learning_rate = 1e-3
    optimizer.pct_start = 0.2
    optimizer.initial_div = 25.0
    optimizer.final_div = 1e4
    optimizer.beta1_base = 0.85
    optimizer.beta1_max = 0.95
    optimizer.beta2 = 0.999
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.0
    optimizer.clip_norm = 1.0

    config.eval = ConfigDict()
    config.eval.batch_size = 64  # images, or queries to encode
    config.eval.block = 16384  # as model.block, in evaluation
    config.eval.split = "validation"
    config.eval.metric = "ndcg_10"

    config.checkpoint = ConfigDict()
    config.checkpoint.keep = 2  # newest ones, beside the best
    return config
