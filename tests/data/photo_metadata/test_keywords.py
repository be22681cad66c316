"""Keywords in XMP packets of photo programs: merged, replaced, taken back; everything else stays."""

import itertools
from xml.etree import ElementTree

import pytest

from aia_jax.data.photo_metadata.keywords import FIELDS, RECORD, SUBJECT, merge_keywords, read_keywords, write_path
from aia_jax.data.photo_metadata.xmp_packet import EMPTY_PACKET, EMPTY_SIDECAR, XmpPacket
from aia_jax.utils.errors import InputError
from tests.helpers.sidecars import DIGIKAM, LIGHTROOM, SIDECARS, SLOPPY

TAGS_LIST = next(field for field in FIELDS if field.name == "TagsList")
OWN = {
    "Lightroom": [("Animals", "Dog"), ("beach",)],
    "digiKam": [("Places", "Zürich"), ("People", "Zoë")],
    "darktable": [],
    "sloppy": [('a > "b"',)],
}
AUTOMATIC = [("auto", "dog"), ("auto", "Black/White | <b>")]


def others(packet):
    """Everything in a packet except keywords and the record: elements, attributes and texts in their order."""
    names = {f"{{{prop.uri}}}{prop.name}" for prop in (*FIELDS, RECORD)}

    def facts(element):
        attributes = [(name, value) for name, value in element.attrib.items() if name not in names]
        kept = [facts(child) for child in element if child.tag not in names]
        return element.tag, attributes, (element.text or "").strip(), kept

    return facts(ElementTree.fromstring(packet.content))


@pytest.mark.parametrize("program", SIDECARS)
def test_keywords_are_merged_replaced_and_taken_back(program):
    first = XmpPacket(SIDECARS[program].encode())
    assert read_keywords(first) == OWN[program]
    merged = merge_keywords(first, AUTOMATIC)
    assert others(merged) == others(first)
    assert read_keywords(merged) == OWN[program]
    for field in FIELDS:
        own = [write_path(field, path) for path in OWN[program]] if not first.has(field) else first.values(field)
        expected = (*own, *(write_path(field, path) for path in AUTOMATIC))
        assert merged.values(field) == tuple(dict.fromkeys(expected))
    assert merge_keywords(merged, AUTOMATIC) is merged
    replaced = merge_keywords(merged, [("auto", "cat")])
    assert [path[-1] for path in AUTOMATIC if path[-1] in replaced.values(SUBJECT)] == []
    assert replaced.values(SUBJECT)[-1] == "cat"
    assert merge_keywords(merge_keywords(replaced, AUTOMATIC), [("auto", "cat")]).content == replaced.content
    restored = merge_keywords(replaced, ())
    assert not restored.has(RECORD)
    assert [restored.values(field) for field in FIELDS] == [first.values(field) for field in FIELDS]
    assert others(restored) == others(first)
    if program != "sloppy":  # whose attribute has become an array
        assert restored.content == first.content


def test_separators_markup_and_line_breaks_in_labels_stay_one_keyword():
    packet = merge_keywords(XmpPacket(EMPTY_SIDECAR), [("auto", "a/b|c, <d> & \n\x01e")], new=True)
    assert [packet.values(field) for field in FIELDS] == [
        ("auto|a/b-c, <d> & \ufffde",),
        ("auto/a-b|c, <d> & \ufffde",),
        ("auto/a-b|c, <d> & \ufffde",),
        ("a/b|c, <d> & \ufffde",),
    ]


def test_a_new_packet_repeats_the_keywords_of_the_photo_and_vanishes_with_the_automatic_ones():
    carried = [("Places", "Rome"), ("beach",)]
    for empty in (EMPTY_SIDECAR, EMPTY_PACKET):
        packet = merge_keywords(XmpPacket(empty), AUTOMATIC, carried, new=True)
        assert read_keywords(packet) == carried
        assert packet.values(TAGS_LIST)[:2] == ("Places/Rome", "beach")
        assert merge_keywords(merge_keywords(packet, [("auto", "cat")]), ()) is None
    rated = packet.content.replace(
        b'rdf:about=""', b'rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"'
    )
    kept = merge_keywords(XmpPacket(rated), ())
    assert kept.values(SUBJECT) == ("Rome", "beach")
    mine = packet.edit({SUBJECT: ["mine"]})
    assert merge_keywords(mine, ()).values(SUBJECT) == ("Rome", "beach", "mine")


def test_keywords_that_a_person_had_or_adopts_are_not_taken_back():
    had = merge_keywords(XmpPacket(LIGHTROOM.encode()), [("beach",), ("auto", "Dog")])
    assert merge_keywords(had, ()).content == LIGHTROOM.encode()
    # The person moves the automatic keyword into the own hierarchy.
    merged = merge_keywords(XmpPacket(DIGIKAM.encode()), [("auto", "lake")])
    moved = merged.edit({TAGS_LIST: ["Places/lake"]}, {TAGS_LIST: ["auto/lake"]})
    restored = merge_keywords(moved, ())
    assert restored.values(SUBJECT) == ("Zürich", "Zoë", "lake")
    assert restored.values(TAGS_LIST) == ("Places/Zürich", "People/Zoë", "Places/lake")
    for path, automatic in itertools.product(("lake", "Places/lake"), ([], ["auto/lake"])):
        adopted = merged.edit({TAGS_LIST: [path]}, {TAGS_LIST: automatic})
        again = merge_keywords(adopted, [("auto", "lake")])
        for packet in (merge_keywords(adopted, ()), merge_keywords(again, ()), merge_keywords(again, [("auto", "x")])):
            assert "lake" in packet.values(SUBJECT)


def test_a_name_in_dc_subject_that_only_repeats_a_hierarchical_keyword_is_taken_back():
    first = merge_keywords(XmpPacket(EMPTY_SIDECAR), [("auto", "cat")]).edit({TAGS_LIST: ["Animals/Dog"]})
    first = merge_keywords(first, ())
    for automatic in (("auto", "sky"), ("auto", "Dog")):
        merged = merge_keywords(first, [automatic])
        assert merged.values(SUBJECT) == tuple(dict.fromkeys(("Dog", automatic[-1])))
        assert merge_keywords(merged, [automatic]) is merged
        assert merge_keywords(merged, ()).content == first.content


def test_levels_of_automatic_keywords_that_a_program_repeats_are_not_keywords_of_the_person():
    merged = merge_keywords(XmpPacket(DIGIKAM.encode()), [("auto", "Animals", "dog")])
    repeated = merged.edit({SUBJECT: ["auto", "Animals"]})
    assert read_keywords(repeated) == OWN["digiKam"]
    assert merge_keywords(repeated, [("auto", "Animals", "dog")]) is repeated
    person = merge_keywords(XmpPacket(EMPTY_SIDECAR).edit({SUBJECT: ["auto"]}), AUTOMATIC)
    assert read_keywords(person) == [("auto",)]
    assert merge_keywords(person, AUTOMATIC) is person


def test_keywords_are_taken_back_after_exiftool_has_changed_the_namespace_of_a_field():
    first = XmpPacket(LIGHTROOM.encode())
    merged = merge_keywords(first, AUTOMATIC).content
    rewritten = XmpPacket(merged.replace(b"http://ns.microsoft.com/photo/1.0/", b"http://ns.microsoft.com/photo/1.0"))
    assert rewritten.content != merged
    assert merge_keywords(rewritten, AUTOMATIC) is rewritten
    assert merge_keywords(rewritten, ()).content == first.content


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "iso-8859-1"])
def test_encodings_are_kept_or_become_utf_8(encoding):
    text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>{SLOPPY}'.replace('"b"', "ü")
    packet = merge_keywords(XmpPacket(text.encode(encoding)), [("auto", "Łódź")])
    assert packet.values(SUBJECT) == ("a > ü", "Łódź")
    again = XmpPacket(packet.content)
    assert again.values(SUBJECT) == packet.values(SUBJECT)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not XML"),
        (b"<a>", "is not XML"),
        (b"<a>\xe9</a>", "is not XML"),
        (b"<a/>", "no rdf:RDF"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "entities"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "entities"),
        (b"<a>" * 200_000, "levels"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "unknown encoding"),
        (b"<?xml version='1.0' encoding='utf-16'?><a/>", "is not XML"),
        (b"\xff\xfe<\0a", "is not"),
        (b"<a>" + b" " * 2**24 + b"</a>", "at most"),
        (b'<rdf:RDF xmlns:rdf="urn:other"/>', "no rdf:RDF"),
    ],
)
def test_broken_and_hostile_packets_are_refused(content, problem):
    with pytest.raises(InputError, match=problem):
        XmpPacket(content)


def test_every_cut_and_every_changed_byte_gives_a_packet_or_an_input_error():
    content = merge_keywords(XmpPacket(LIGHTROOM.encode()), AUTOMATIC).content
    damaged = [content[:end] for end in range(0, len(content), 97)]
    positions = range(0, len(content), 41)
    damaged += [content[:at] + new + content[at + 1 :] for at, new in itertools.product(positions, (b"<", b"\0", b'"'))]
    outcomes = set()
    for packet in damaged:
        try:
            edited = merge_keywords(XmpPacket(packet), [("auto", "cat")])
            outcomes.add(edited is not None and "cat" in edited.values(SUBJECT))
        except InputError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}
