from importlib.util import find_spec

import pytest

from aia_jax.data.words.imagenet import imagenet_classes
from tests import record_imagenet_classes


def test_each_class_has_its_own_name_and_a_definition():
    classes = imagenet_classes()
    assert len({one.name.casefold() for one in classes}) == len(classes) == 1000
    assert all(one.name and one.lemmas and one.definition for one in classes)


def test_classes_have_the_order_of_the_logits():
    names = [one.name for one in imagenet_classes()]
    places = {0: "tench", 134: "crane (bird)", 285: "Egyptian cat", 517: "crane (machine)", 967: "espresso"}
    assert {place: names[place] for place in places} == places
    assert imagenet_classes()[281].text == "tabby, tabby cat: a cat with a grey or tawny coat mottled with black"


@pytest.mark.extras
@pytest.mark.skipif(not find_spec("timm"), reason="timm is not installed: pip install -e '.[parity]'")
def test_the_file_holds_the_texts_of_timm():
    assert record_imagenet_classes.OUTPUT.read_text(encoding="utf-8") == record_imagenet_classes.as_json(
        record_imagenet_classes.imagenet_classes()
    )
