"""Reads and edits arrays of texts in an XMP packet. All other bytes of the packet stay the same.

An XMP packet is XML: properties in one or more `rdf:Description` elements. A property with several values is an array
(`rdf:Bag`, `rdf:Seq` or `rdf:Alt`) of `rdf:li` items. Some programs write an array with one item as a plain text, as an
element or as an attribute of `rdf:Description`. An edit inserts or cuts bytes, so that prefixes, comments, spaces and
the order of all other content are kept.

Source: XMP Specification Part 1 (ISO 16684-1), serialisation as RDF/XML.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from aia_jax.data.photo_metadata.rdf_elements import RDF, START_TAG, Element, as_utf8, parse
from aia_jax.utils.errors import InputError
from aia_jax.version import __version__

_ATTRIBUTE = rb"""\s+(?:[^\s=:]+:)?%s\s*=\s*(?:"[^"]*"|'[^']*')"""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_EMPTY = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="aia_jax {__version__}">\n'
    f' <rdf:RDF xmlns:rdf="{RDF}">\n  <rdf:Description rdf:about=""/>\n </rdf:RDF>\n</x:xmpmeta>\n'
).encode()
EMPTY_SIDECAR = b'<?xml version="1.0" encoding="UTF-8"?>\n' + _EMPTY
EMPTY_PACKET = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n' + _EMPTY + b'<?xpacket end="w"?>'


Splice = tuple[int, int, bytes]  # start and end of the bytes to replace, and the bytes that replace them


class Property(NamedTuple):
    """A property whose value is an array of texts.

    Attributes:
        prefix, uri, name: as in `prefix:name`, where the prefix stands for the namespace `uri`.
        array: kind of a new array, "Bag" or "Seq".
    """

    prefix: str
    uri: str
    name: str
    array: str = "Bag"

    def __str__(self) -> str:
        return f"{self.prefix}:{self.name}"


class XmpPacket:
    """An XMP packet.

    Args:
        content: the bytes of a sidecar, or of the packet in a photo.

    Raises:
        InputError: the packet is too large, is not XML or no XMP, has a document type or entities, or is nested too
            deeply.
    """

    def __init__(self, content: bytes):
        self.content = as_utf8(content)
        self._root = parse(self.content)
        bodies = [self._root] if self._root.name == (RDF, "RDF") else [*self._root.find(RDF, "RDF")]
        if not bodies:
            raise InputError("it is XML, but no XMP: it has no rdf:RDF")
        self._body = bodies[0]
        self._descriptions = [*self._body.find(RDF, "Description")]

    def values(self, prop: Property) -> tuple[str, ...]:
        """Returns the values of a property without spaces around them; () if it has none or does not exist."""
        return tuple(value for value, _ in self._items(prop))

    def has(self, prop: Property) -> bool:
        """Returns whether the property exists, possibly without a value."""
        return bool(self._elements(prop) or self._with_attribute(prop))

    def others(self, known: Iterable[Property]) -> bool:
        """Returns whether a property that is not in `known` exists."""
        names = {(prop.uri, prop.name) for prop in known}
        found = [child.name for place in self._descriptions for child in place.children]
        found += [name for place in self._descriptions for name in place.attributes if name[0] not in ("", RDF)]
        return not names.issuperset(found)

    def edit(
        self,
        add: Mapping[Property, Sequence[str]],
        remove: Mapping[Property, Sequence[str]] | None = None,
        drop: Iterable[Property] = (),
    ) -> "XmpPacket":
        """Returns a packet with other values.

        Args:
            add: new values for each property. A property that does not exist is created.
            remove: values to remove from each property. Values that it does not have are ignored.
            drop: properties to remove if no value is left.

        Raises:
            InputError: the packet has an unusual form that cannot be edited.
        """
        kept, dropped = self, set(drop)
        if removals := {prop: set(values) for prop, values in (remove or {}).items()}:
            left = {prop: [value for value in self.values(prop) if value not in removals[prop]] for prop in removals}
            cuts = []
            for prop, values in removals.items():
                empty = prop in dropped and not left[prop]
                cuts += self._property_cuts(prop) if empty else [cut for own, cut in self._items(prop) if own in values]
            kept = self._spliced(cuts, left)
        return kept._added({prop: [*map(clean_text, values)] for prop, values in add.items() if values})

    def _added(self, values: Mapping[Property, list[str]]) -> "XmpPacket":
        whole = {prop: [*self.values(prop), *new] for prop, new in values.items()}
        cuts, created = [], []
        for prop, new in values.items():
            element = next((place for place in self._elements(prop) if place.array), None)
            if element:
                cuts.append(self._into_array(element.array, new))
            else:
                cuts += self._property_cuts(prop)
                created.append(self._new_property(prop, whole[prop]))
        if created:
            cuts.append(self._into_description(created, cuts))
        return self._spliced(cuts, whole)

    def _new_property(self, prop: Property, values: Sequence[str]) -> bytes:
        rdf = _prefix(self._tag(self._body))
        items = "".join(f"\n     <{rdf}li>{escape(value)}</{rdf}li>" for value in values)
        array = f"<{rdf}{prop.array}>{items}\n    </{rdf}{prop.array}>"
        return self._encode(f'<{prop} xmlns:{prop.prefix}="{prop.uri}">\n    {array}\n   </{prop}>')

    def _into_array(self, array: Element, values: Sequence[str]) -> Splice:
        name = self._tag(array)
        items = [*array.find(RDF, "li")]
        outside = self._spaces_before(array.start)
        spaces = self._spaces_before(items[-1].start) if items else outside + b" " * bool(outside)
        li = f"{_prefix(name)}li"
        new = b"".join(spaces + self._encode(f"<{li}>{escape(value)}</{li}>") for value in values)
        if items:
            return items[-1].end, items[-1].end, new
        return self._into_empty(array, new, outside)

    def _into_description(self, created: Sequence[bytes], cuts: Sequence[Splice]) -> Splice:
        """Returns the splice that adds new properties to the first description, or to a new one."""
        if not self._descriptions:
            rdf = _prefix(self._tag(self._body))
            start, end = f'\n  <{rdf}Description {rdf or "rdf:"}about="">', f"\n  </{rdf}Description>"
            new = b"".join(b"\n   " + each for each in created)
            return self._into_empty(self._body, self._encode(start) + new + self._encode(end), b"\n ")
        place = self._descriptions[0]
        kept = [child for child in place.children if child.end not in {end for _, end, _ in cuts}]
        if kept:
            spaces = self._spaces_before(kept[-1].start)
            return kept[-1].end, kept[-1].end, b"".join(spaces + each for each in created)
        spaces = self._spaces_before(place.start)
        new = b"".join(spaces + b" " * bool(spaces) + each for each in created)
        return self._into_empty(place, new, spaces)

    def _into_empty(self, element: Element, new: bytes, after: bytes) -> Splice:
        """Returns the splice that writes `new` into an element without a child. `after` are spaces for its end tag."""
        if self.content[element.content - 2 : element.content] == b"/>":
            return element.content - 2, element.content, b">" + new + after + b"</" + self._tag(element) + b">"
        there = self.content[element.content : element.content + 1].isspace()  # those that an earlier edit left
        return element.content, element.content, new if there else new + after

    def _property_cuts(self, prop: Property) -> list[Splice]:
        """Returns the splices that cut all elements and attributes of a property."""
        elements = [self._cut(child) for place in self._descriptions for child in place.find(prop.uri, prop.name)]
        return elements + [self._attribute_cut(place, prop) for place in self._with_attribute(prop)]

    def _cut(self, element: Element) -> Splice:
        return _after_spaces(self.content, element.start), element.end, b""

    def _attribute_cut(self, place: Element, prop: Property) -> Splice:
        found = re.compile(_ATTRIBUTE % prop.name.encode()).search(self.content, place.start, place.content)
        return (*found.span(), b"")

    def _spliced(self, cuts: list[Splice], expected: Mapping[Property, Sequence[str]]) -> "XmpPacket":
        if not cuts:
            return self
        parts, end = [], 0
        for start, stop, new in sorted(cuts):
            parts += [self.content[end:start], new]
            end = stop
        edited = XmpPacket(b"".join([*parts, self.content[end:]]))
        for prop, values in expected.items():
            if sorted(edited.values(prop)) != sorted(values):
                raise InputError(f"its {prop} has an unusual form, which cannot be changed")
        return edited

    def _with_attribute(self, prop: Property) -> list[Element]:
        return [place for place in self._descriptions if (prop.uri, prop.name) in place.attributes]

    def _elements(self, prop: Property) -> list[Element]:
        return [child for place in self._descriptions for child in place.find(prop.uri, prop.name)]

    def _items(self, prop: Property) -> list[tuple[str, Splice]]:
        """Returns the values, each with the splice that cuts it."""
        found = []
        for place in self._with_attribute(prop):
            found.append((place.attributes[prop.uri, prop.name], self._attribute_cut(place, prop)))
        for element in self._elements(prop):
            items = element.array.find(RDF, "li") if element.array else [element]
            found += [(item.value, self._cut(item)) for item in items]
        return [(value.strip(), cut) for value, cut in found if value.strip()]

    def _tag(self, element: Element) -> bytes:
        return START_TAG.match(self.content, element.start)[1]

    def _spaces_before(self, offset: int) -> bytes:
        return self.content[_after_spaces(self.content, offset) : offset]

    def _encode(self, text: str) -> bytes:
        return text.encode(_declared_encoding(self.content), "xmlcharrefreplace")


def clean_text(text: str) -> str:
    """Returns the text with U+FFFD for characters that XML cannot hold, and one space for line breaks and tabs."""
    return " ".join(_NOT_XML.sub("\ufffd", text).split())


def _declared_encoding(content: bytes) -> str:
    found = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([^"']+)""", content)
    return found[1].decode("ascii", "replace") if found else "utf-8"


def _prefix(tag: bytes) -> str:
    return tag.decode()[: tag.decode().rfind(":") + 1]


def _after_spaces(content: bytes, offset: int) -> int:
    """Returns the offset of the first of the spaces and line breaks before `offset`."""
    while content[offset - 1 : offset].isspace():
        offset -= 1
    return offset
