"""Writes `aia_jax/data/words/imagenet_classes.json` from the texts in timm's package.

    python tests/record_imagenet_classes.py

Needs pip install timm. The names are the first lemma, or where this is ambiguous or rare, the name in `NAMES`.
"""

import importlib.metadata
import json
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
OUTPUT = REPOSITORY / "aia_jax" / "data" / "words" / "imagenet_classes.json"
NAMES = {
    4: "hammerhead shark",
    7: "rooster",
    21: "kite (bird)",
    33: "loggerhead turtle",
    41: "whiptail lizard",
    67: "diamondback rattlesnake",
    87: "African grey parrot",
    134: "crane (bird)",
    154: "Pekingese",
    161: "basset hound",
    164: "bluetick coonhound",
    168: "redbone coonhound",
    191: "Airedale terrier",
    192: "cairn terrier",
    194: "Dandie Dinmont terrier",
    195: "Boston terrier",
    199: "Scottish terrier",
    204: "Lhasa apso",
    216: "clumber spaniel",
    217: "English springer spaniel",
    241: "Entlebucher",
    242: "boxer (dog)",
    248: "husky",
    255: "Leonberger",
    256: "Newfoundland dog",
    263: "Pembroke Welsh corgi",
    264: "Cardigan Welsh corgi",
    268: "Mexican hairless dog",
    269: "grey wolf",
    296: "polar bear",
    313: "stick insect",
    321: "admiral butterfly",
    322: "ringlet butterfly",
    323: "monarch butterfly",
    330: "cottontail rabbit",
    332: "Angora rabbit",
    339: "sorrel horse",
    341: "pig",
    371: "patas monkey",
    378: "capuchin monkey",
    380: "titi monkey",
    383: "ring-tailed lemur",
    387: "red panda",
    397: "pufferfish",
    408: "amphibious vehicle",
    412: "trash can",
    428: "wheelbarrow",
    436: "station wagon",
    437: "lighthouse",
    446: "ring binder",
    456: "bow (weapon)",
    458: "memorial tablet",
    459: "bra",
    468: "taxi",
    469: "cauldron",
    476: "merry-go-round",
    477: "tool kit",
    480: "cash machine",
    487: "mobile phone",
    517: "crane (machine)",
    553: "filing cabinet",
    581: "radiator grille",
    589: "hair dryer",
    592: "hard disk",
    608: "jeans",
    610: "T-shirt",
    612: "rickshaw",
    628: "ocean liner",
    630: "loafer",
    639: "tank suit",
    673: "computer mouse",
    681: "notebook computer",
    687: "pipe organ",
    697: "pajamas",
    680: "bottle nipple",
    714: "plectrum",
    724: "pirate ship",
    726: "carpenter's plane",
    738: "flowerpot",
    746: "hockey puck",
    751: "race car",
    769: "ruler",
    776: "saxophone",
    782: "CRT screen",
    800: "slot machine",
    829: "streetcar",
    840: "mop",
    844: "electric switch",
    850: "teddy bear",
    876: "vat",
    881: "upright piano",
    882: "vacuum cleaner",
    897: "washing machine",
    913: "shipwreck",
    916: "website",
    929: "ice lolly",
    934: "hot dog",
    978: "seashore",
    981: "baseball player",
    989: "rose hip",
    998: "ear of corn",
    999: "toilet paper",
}


def imagenet_classes() -> list[dict[str, str]]:
    """Returns name, lemmas and definition of each class, in the order of timm's classifiers."""
    lines = (_read("imagenet_synset_to_lemma.txt"), _read("imagenet_synset_to_definition.txt"))
    lemmas, definitions = (dict(line.split("\t", 1) for line in file) for file in lines)
    synsets = [synset.strip() for synset in _read("imagenet_synsets.txt")]
    return [
        {
            "name": NAMES.get(index, lemmas[synset].split(", ")[0]),
            "lemmas": lemmas[synset].strip(),
            "definition": definitions[synset].strip(),
        }
        for index, synset in enumerate(synsets)
    ]


def as_json(classes: list[dict[str, str]]) -> str:
    """Returns the classes as JSON, one class per line."""
    return "[\n" + ",\n".join(json.dumps(one) for one in classes) + "\n]\n"


def _read(name: str) -> list[str]:
    path = importlib.metadata.distribution("timm").locate_file(f"timm/data/_info/{name}")
    return Path(path).read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    OUTPUT.write_text(as_json(imagenet_classes()), encoding="utf-8")
