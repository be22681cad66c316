"""Search on embedded data: words in, drawn scenes out, by the maps and keywords of the demo's annotator.

python train.py --config configs/demo.py --workdir runs/demo
python train.py --config configs/demo_search.py --workdir runs/demo_search
"""

from configs.amc import search_config


def get_config():
    """The scenes of `configs/demo.py` at small widths."""
    config = search_config("scenes")
    config.epochs = 2
    config.data.annotator = "runs/demo"
    config.data.num_workers = 0
    config.data.num_train = 2900
    config.data.num_test = 400
    config.data.seed = 7
    config.model.embed_size = 128
    config.model.word_size = 64
    return config
