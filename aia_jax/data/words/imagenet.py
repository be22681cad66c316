"""Names and definitions of the 1,000 classes of ImageNet (ILSVRC 2012), in the order of the usual classifiers.

The lemmas and definitions are those of WordNet 3.0; see WORDNET_LICENSE.txt. The order and the texts are those of timm
(Apache-2.0). `tests/record_imagenet_classes.py` writes the file.
"""

import dataclasses
import functools
import json
from importlib import resources


@dataclasses.dataclass(frozen=True)
class ImageNetClass:
    """A class of ImageNet.

    Attributes:
        name: readable name. No other class has this name.
        lemmas: synonyms, separated by ", ".
        definition: definition of this sense.
    """

    name: str
    lemmas: str
    definition: str

    @property
    def text(self) -> str:
        """The lemmas and the definition as one text for a text encoder."""
        return f"{self.lemmas}: {self.definition}"


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Returns the 1,000 classes in the order of the logits."""
    text = (resources.files("aia_jax.data.words") / "imagenet_classes.json").read_text(encoding="utf-8")
    return tuple(ImageNetClass(**fields) for fields in json.loads(text))
