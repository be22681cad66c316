"""Parses RDF/XML of others into elements that know where they are in the bytes.

Document types and entities are refused, and size and depth are limited.
"""

import json
import re
from collections.abc import Iterator
from typing import Any
from xml.sax import SAXException, handler

from defusedxml import DefusedXmlException
from defusedxml.expatreader import DefusedExpatParser

from aia_jax.utils.errors import InputError

MAX_BYTES = 16 * 2**20  # of a packet; those of raw developers have up to about 1 MB
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
START_TAG = re.compile(rb"""<([^\s/>"']+)(?:[^"'>]|"[^"]*"|'[^']*')*>""")
_MAX_DEPTH = 100  # levels of elements
_SPELLINGS = {
    "http://ns.microsoft.com/photo/1.0": "http://ns.microsoft.com/photo/1.0/"
}  # exiftool writes the first one


class Element:
    """An element of the packet, and where its parts are in the bytes."""

    def __init__(self, name: tuple[str, str], attributes: dict[tuple[str, str], str], start: int, content: int):
        self.name, self.attributes = name, attributes
        self.start, self.content = start, content  # offsets of "<" and of the first byte after the start tag
        self.stop = self.end = content  # offsets of the end tag, and of the first byte after it
        self.children: list[Element] = []
        self.texts: list[str] = []

    def find(self, uri: str, *names: str) -> Iterator["Element"]:
        return (child for child in self.children if child.name[0] == uri and child.name[1] in names)

    @property
    def value(self) -> str:
        """The text of an item, also of an item with qualifiers."""
        nested = [*self.find(RDF, "value"), *self.find(RDF, "Description")]
        return nested[0].value if nested else self.attributes.get((RDF, "value"), "".join(self.texts))

    @property
    def array(self) -> "Element | None":
        return next(self.find(RDF, "Bag", "Seq", "Alt"), None)


def parse(content: bytes) -> Element:
    """Parses XML in an encoding that contains ASCII, and returns its root.

    Raises InputError if the content is no XML, has a document type or entities, or is nested too deeply.
    """
    parser = DefusedExpatParser(namespaceHandling=1, forbid_dtd=True)
    builder = _Builder(content, parser)
    parser.setContentHandler(builder)
    try:
        parser.feed(content)
        parser.close()
    except InputError:
        raise
    except DefusedXmlException:
        raise InputError("its XMP has a document type or entities, which are not read") from None
    except SAXException as error:
        raise InputError(f"its XMP is not XML: {error.getMessage()}") from None
    except (LookupError, ValueError) as error:  # an unknown encoding
        raise InputError(f"its XMP is not XML: {error}") from None
    return builder.root


def as_utf8(content: bytes) -> bytes:
    """Returns UTF-16 and UTF-32 as UTF-8, and content in other encodings as it is, without zero bytes at the end.

    Raises InputError if the content is too large or damaged.
    """
    if len(content) > MAX_BYTES:
        raise InputError(f"its XMP has {len(content) / 1e6:,.0f} MB; at most {MAX_BYTES / 1e6:,.0f} MB are read")
    name = json.detect_encoding(content[:4])
    if name.startswith("utf-8"):
        return content.rstrip(b"\0")
    try:
        text = content.decode(name).rstrip("\0")
    except UnicodeError as error:
        raise InputError(f"its XMP is not {name.upper()} text: {error}") from None
    return re.sub(r"""(<\?xml[^>]*?encoding\s*=\s*["'])[^"']*""", r"\1UTF-8", text, count=1).encode()


def _name(name: tuple[str | None, str]) -> tuple[str, str]:
    return _SPELLINGS.get(name[0], name[0] or ""), name[1]


class _Builder(handler.ContentHandler):
    """Builds the tree of `Element`. `offset` returns the position of the parser in the bytes."""

    def __init__(self, content: bytes, parser: DefusedExpatParser):
        super().__init__()
        self._content, self._parser = content, parser
        self._open: list[Element] = [Element(("", ""), {}, 0, 0)]

    def startElementNS(self, name: tuple[str | None, str], qname: str | None, attrs: Any) -> None:
        if len(self._open) > _MAX_DEPTH:
            raise InputError(f"its XMP has more than {_MAX_DEPTH} levels of elements")
        start = self._offset()
        content = START_TAG.match(self._content, start).end()
        attributes = {_name(name): value for name, value in attrs.items()}
        element = Element(_name(name), attributes, start, content)
        self._open[-1].children.append(element)
        self._open.append(element)

    def endElementNS(self, name: tuple[str | None, str], qname: str | None) -> None:
        element = self._open.pop()
        if self._content[element.content - 2 : element.content] != b"/>":
            element.stop = self._offset()
            element.end = self._content.index(b">", element.stop) + 1

    def characters(self, content: str) -> None:
        self._open[-1].texts.append(content)

    @property
    def root(self) -> Element:
        return self._open[0].children[0]

    def _offset(self) -> int:
        return self._parser._parser.CurrentByteIndex  # the public locator has lines and columns only
