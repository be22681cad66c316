"""Reads keywords in the XMP of a photo, and merges automatic keywords into it so that they can be taken back.

A keyword is a path in a hierarchy of keywords, such as ("Animals", "Dog"). Photo programs read different fields. So a
keyword is written to all of `FIELDS`. The property `aia:Written` records what was added. All other content stays.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from aia_jax.data.photo_metadata.xmp_packet import Property, XmpPacket, clean_text

PARENT = "auto"  # the default level above automatic keywords
KeywordPath = tuple[str, ...]  # levels of a keyword, the most general one first

SUBJECT = Property("dc", "http://purl.org/dc/elements/1.1/", "subject")
# The fields with keywords, and the separator of the levels. `dc:subject` has only the last level.
FIELDS = {
    Property("lr", "http://ns.adobe.com/lightroom/1.0/", "hierarchicalSubject"): "|",
    Property("digiKam", "http://www.digikam.org/ns/1.0/", "TagsList", "Seq"): "/",
    Property("MicrosoftPhoto", "http://ns.microsoft.com/photo/1.0/", "LastKeywordXMP"): "/",
    SUBJECT: "",
}
RECORD = Property("aia", "urn:aia-jax:xmp:keywords/1.0/", "Written")

_NAMES = {str(field): field for field in FIELDS}
# In the record: values of the person, copied to a new packet; names that the person had already; the packet is new.
_CARRIED, _HAD, _NEW = "carried ", "had ", "new"


@dataclasses.dataclass
class Record:
    """What earlier calls wrote to a packet.

    Attributes:
        added: the automatic values of each field.
        carried: the values of each field that were copied from other metadata of the photo.
        created: the fields that did not exist before.
        new: whether the packet did not exist before.
        had: the added values of `dc:subject` that were names of keywords of the person already.
    """

    added: dict[Property, list[str]]
    carried: dict[Property, list[str]]
    created: set[Property]
    new: bool
    had: list[str]

    @classmethod
    def read(cls, packet: XmpPacket) -> "Record":
        """Reads the property `aia:Written`. Entries that are not understood are ignored."""
        record = cls({field: [] for field in FIELDS}, {field: [] for field in FIELDS}, set(), False, [])
        for entry in packet.values(RECORD):
            kind = record.carried if entry.startswith(_CARRIED) else record.added
            name, equals, value = entry.removeprefix(_CARRIED).partition("=")
            if entry == _NEW:
                record.new = True
            elif entry.startswith(_HAD):
                record.had.append(entry.removeprefix(_HAD))
            elif name in _NAMES and equals:
                kind[_NAMES[name]].append(value)
            elif name in _NAMES:
                record.created.add(_NAMES[name])
        return record

    def entries(self) -> list[str]:
        """Returns the values of `aia:Written`."""
        entries = [_NEW] * self.new + sorted(map(str, self.created))
        entries += [f"{field}={value}" for field, values in self.added.items() for value in values]
        entries += [f"{_CARRIED}{field}={value}" for field, values in self.carried.items() for value in values]
        return entries + [_HAD + name for name in self.had]


def write_path(field: Property, path: KeywordPath) -> str:
    """Returns the value of a keyword in a field. A separator inside a level becomes "-"."""
    separator = FIELDS[field]
    return separator.join(level.replace(separator, "-") for level in path) if separator else path[-1]


def read_keywords(packet: XmpPacket) -> list[KeywordPath]:
    """Returns the keywords in a packet without the automatic ones that this project wrote.

    A value of `dc:subject` that is a level of another keyword is not a keyword of its own: programs write the levels of
    a hierarchical keyword there too.
    """
    return _own_keywords(packet, Record.read(packet))


def merge_keywords(
    packet: XmpPacket, automatic: Sequence[KeywordPath], carried: Iterable[KeywordPath] = (), *, new: bool = False
) -> XmpPacket | None:
    """Replaces the automatic keywords in a packet. An empty `automatic` takes them all back.

    A field that the packet does not have gets the keywords of the person too, because programs read only one field.
    Keywords that are there already stay those of the person, and are not taken back later.

    Args:
        carried: keywords elsewhere in the photo, which the packet must repeat so that programs still show them.
        new: whether the packet did not exist before. `carried` is only used for a new packet.

    Returns:
        The packet; None if it was new once and has nothing else than what this project wrote.

    Raises:
        InputError: the packet has an unusual form that cannot be edited.
    """
    record = Record.read(packet)
    kept = Record({}, record.carried, set(record.created), record.new or new, [])
    if new:
        kept.carried = {field: _values(field, carried) for field in FIELDS}
    own = _own_keywords(packet, record)
    names = _values(SUBJECT, own)
    adopted = names.keys() - record.had  # the person has used these names since then, elsewhere in the hierarchy
    add, remove = {RECORD: []}, {RECORD: packet.values(RECORD)}
    for field in FIELDS:
        if automatic and not packet.has(field):
            kept.created.add(field)
        wanted = _values(field, [*own, *automatic] if field in kept.created else automatic) if automatic else {}
        there, before = dict.fromkeys(packet.values(field)), record.added[field]
        missing = [value for value in wanted if value not in there and value not in kept.carried[field]]
        if field == SUBJECT:
            before = [value for value in before if value not in adopted]
        taken = [value for value in before if value not in wanted]
        kept.added[field] = [value for value in before if value in wanted and value in there] + missing
        add[field] = [value for value in kept.carried[field] if new] + missing
        remove[field] = taken
    if automatic:
        kept.had = [name for name in kept.added[SUBJECT] if name in names]
        add[RECORD] = kept.entries()
        same = add[RECORD] == list(packet.values(RECORD))
        if same and not any(add[field] or remove[field] for field in FIELDS):
            return packet
        return packet.edit(add, remove)
    edited = packet.edit({}, remove, drop=[RECORD, *record.created])
    return None if record.new and _only_carried(edited, record) else edited


def _only_carried(packet: XmpPacket, record: Record) -> bool:
    values = all(set(packet.values(field)) <= set(record.carried[field]) for field in FIELDS)
    return values and not packet.others(FIELDS)


def _values(field: Property, paths: Iterable[KeywordPath]) -> dict[str, None]:
    values = (clean_text(write_path(field, path)) for path in paths)
    return dict.fromkeys(filter(None, values))


def _own_keywords(packet: XmpPacket, record: Record) -> list[KeywordPath]:
    """Returns the keywords of the person.

    Programs also repeat the levels above an automatic keyword in `dc:subject`. These are not keywords of the person.
    """
    found: dict[KeywordPath, KeywordPath] = {}
    above, flat = set(), set()
    for field, separator in FIELDS.items():
        automatic, known = set(record.added[field]), {level for key in found for level in key} | (above - flat)
        if separator:
            above.update(level for value in automatic for level in value.split(separator)[:-1])
            flat.update(packet.values(field))
        for value in packet.values(field):
            levels = value.split(separator) if separator else [value]
            path = tuple(level.strip() for level in levels if level.strip())
            if path and value not in automatic:
                key = tuple(level.replace("/", "-").replace("|", "-") for level in path)
                if separator or key[0] not in known:
                    found.setdefault(key, path)
    return list(found.values())
