"""System D: AMC, image search by attention to regions and keywords (Chen et al., CVPR 2017, arXiv 1704.00763).

    aia train --config corel5k_lite:gap --config.data.image_size=192 --config.eval.split=validation \
        --config.data.root=datasets --workdir runs/lite
    aia train --config amc:corel5k --workdir runs/amc --config.data.root=datasets \
        --config.data.annotator=runs/lite

corel5k: Queries are words of labels. The first command trains the annotator that computes the feature maps and the
keywords. Both commands run on a CPU. NDCG@10 is 0.311 for queries that training does not see (docs/search.md).
clickture, coco: Read the files that aia_jax/data/search/clicks.py describes. Not run yet: the data were not available.
The authors published neither the code nor the sizes of the model. The comment "ours" marks values that we chose.
"""

from aia_jax.configs.base import ONE_CYCLE, PREPARATION, run_config


def get_config(dataset="corel5k"):
    """Returns the config. `dataset` is "corel5k", "clickture" or "coco"."""
    if dataset not in ("corel5k", "clickture", "coco"):
        raise ValueError(f"--config amc:{dataset} is unknown; known: corel5k, clickture, coco")
    config = search_config(dataset)
    if dataset == "corel5k":
        config.epochs = 2
        config.model.embed_size = 256
        config.model.word_size = 128
        # The predicted keywords have precision 0.66 and recall 0.98 on the annotator's training images, but precision
        # 0.42 and recall 0.66 on the validation images. With this noise, the training keywords are equally poor.
        config.data.keywords_left_out, config.data.keywords_added = 0.35, 0.4
        return config
    config.data.held_out = 0.0  # the test queries are not training queries
    config.data.max_keywords = 20
    config.model.dtype = "bfloat16"
    config.batch_size = 256
    if dataset == "coco":
        config.eval.split = "test"  # only the test images have keywords
    return config


def search_config(dataset):
    """Returns the config of image search. `dataset` is "clickture", "coco", or a data set whose labels are queries."""
    config = run_config("search", dataset)
    config.epochs = 10

    data = config.data
    data.update(PREPARATION)
    data.annotator = ""  # workdir of an annotation run, for feature maps and keywords
    data.keywords = "annotator"  # keywords that the annotator predicts; or "labels": the true labels
    data.keyword_threshold = 0.5  # a label with this score or more is a keyword; ours
    data.max_keywords = 10  # maximum per image; the keywords with the highest scores are used; ours
    data.keywords_left_out = 0.0  # fraction of an image's keywords to leave out in training; ours
    data.keywords_added = 0.0  # fraction of another image's keywords to add in training; ours
    data.query_words = 3  # largest number of label words in a query; ours
    data.held_out = 0.2  # fraction of the multi-word queries that training does not see; ours
    data.negatives = 0  # number of irrelevant images of the batch to sample for each query; 0: all
    data.feature_dtype = "float16"  # of cached feature maps; or "float32"
    data.split_seed = 1  # seed of the validation split; use the annotator's `seed` to get the same split

    model = config.model
    model.modalities = "both"  # or "visual", "keywords"
    model.visual_attention = True  # visual attention (VAN): to positions in the feature map
    model.keyword_attention = True  # language attention (LAN): to keywords
    model.modality_attention = True  # modality attention (MTN): to the feature map and the keywords
    model.word_size = 300  # ours
    model.word_vectors = ""  # text file of initial word vectors in GloVe's format; "": random vectors; ours
    model.embed_size = 512  # ours
    model.kernel_size = 3  # ours
    model.block = 4096  # number of (image, query) pairs in memory at once in training, on each device
    model.recompute = False  # recompute the attention in the backward pass, to save memory

    config.loss.margin = 0.1  # ours

    config.optimizer.update(ONE_CYCLE)  # ours, with all its values
    config.optimizer.clip_norm = 1.0

    config.eval.block = 16384  # the same as model.block, but in evaluation
    config.eval.metric = "ndcg_10"
    return config
