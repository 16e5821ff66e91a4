"""Bad inputs made of good ones: bytes changed anywhere, and changes that keep a file's form and reach what is behind.

Every function draws from a `random.Random`, so that an input is a function of its seed.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import gzip
import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any
from xml.etree import ElementTree

import yaml

Mutation = Callable[[bytes, Random], bytes]

TEXTS = (
    "",
    " ",
    "x" * 5000,
    "../../../escaped",
    "/etc/passwd",
    "..",
    ".",
    "\x1b]0;owned\x07\x1b[2J",
    "a\nb\r\nc",
    "\u202egnp.exe",
    "\ud800",
    "\x00",
    "<script>alert(1)</script>",
    "=1+1",
    "nan",
    "1e999",
    "9" * 5000,
    "0x" + "f" * 5000,
    "!!python/object/apply:os.system [true]",
    "sha256",
    "resnet50",
    "digit-scenes",
    "val-of:val-of:val-of:digit-scenes",
    "folder:/proc/self",
)
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 7, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**30, 10**400, 1e-320, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), True, False, None,
)  # fmt: skip
_WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def in_bytes(content: bytes, r: Random) -> bytes:
    """One to four changes of bytes, wherever they fall."""
    data = bytearray(content)
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        place = r.randrange(len(data) + 1)
        end = min(len(data), place + r.choice((1, 2, 4, 8, 64, 512)))
        change = r.randrange(8)
        if change == 0:
            data[place:end] = bytes(r.randrange(256) for _ in range(end - place))
        elif change == 1 and place < len(data):
            data[place] ^= 1 << r.randrange(8)
        elif change == 2:
            del data[place:]
        elif change == 3:
            del data[place:end]
        elif change == 4:
            data[place:place] = data[place:end] * r.choice((1, 2, 100))
        elif change == 5:
            data[place:place] = bytes(r.randrange(256) for _ in range(r.choice((1, 4, 32))))
        elif change == 6:
            other = r.randrange(len(data) + 1)
            data[place:end] = data[other : other + end - place]
        else:
            size = r.choice(("B", "H", "I", "Q"))
            word = r.choice(_WORDS) & (2 ** (8 * struct.calcsize(size)) - 1)
            packed = struct.pack(r.choice("<>") + size, word)
            data[place : place + len(packed)] = packed
    return bytes(data)


def anything(r: Random, depth: int = 0) -> Any:
    """A value that stands in the place of another: text, numbers at the ends of their ranges, containers."""
    kind = r.randrange(10)
    if kind < 4:
        return r.choice(NUMBERS)
    if kind < 7:
        return r.choice(TEXTS)
    if kind == 7:
        nested: Any = r.choice(NUMBERS)
        for _ in range(r.choice((1, 3, 90))):
            nested = [nested] if r.random() < 0.5 else {"a": nested}
        return nested
    if depth > 2:
        return None
    some = [anything(r, depth + 1) for _ in range(r.randrange(4))]
    return some if kind == 8 else {str(r.choice(TEXTS))[:40]: one for one in some}


def _places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or places."""
    items = (
        list(node.items())
        if isinstance(node, dict)
        else list(enumerate(node))
        if isinstance(node, list)
        else []
    )
    for key, value in items:
        found.append((node, key))
        _places(value, found)
    return found


def in_tree(document: Any, r: Random) -> Any:
    """One to three changes of a document of mappings, lists and values."""
    document = copy.deepcopy(document)
    for _ in range(r.choice((1, 1, 2, 3))):
        places = _places(document, [])
        if not places or r.random() < 0.02:
            return anything(r)
        holder, key = r.choice(places)
        change = r.randrange(8)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[r.choice((*TEXTS, f"{key}s", str(key)[:-1]))] = holder.pop(key)
        elif change == 1 or change == 2:
            other, place = r.choice(places)
            with contextlib.suppress(LookupError):
                holder[key] = copy.deepcopy(other[place])
        elif change == 3 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = anything(r)
    return document


def in_json(content: bytes, r: Random) -> bytes:
    """Another document in place of a JSON one, now and then no document."""
    if r.random() < 0.2:
        return in_bytes(content, r)
    return json.dumps(in_tree(json.loads(content), r)).encode("utf-8", "surrogatepass")


def in_json_lines(content: bytes, r: Random) -> bytes:
    """One line of JSON changed."""
    lines = content.splitlines(keepends=True)
    place = r.randrange(len(lines))
    lines[place] = in_json(lines[place].rstrip(b"\n"), r) + r.choice((b"\n", b"", b"\n\n"))
    return b"".join(lines)


_YAML_PARTS = (
    "&a [*a]",
    "*a",
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "!!timestamp 2001-99-99",
    "2001-99-99",
    "!!binary '%%%'",
    "!!float x",
    "!!int 0x",
    "? [a, b]\n: c",
    "{[1, 2]: 3}",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "<<: *a",
    "0x" + "f" * 4000,
    "1:1:1:1:1:1:1",
    "1" * 4400,
    ".inf",
    "\t",
    "---\n",
    "[" * 200,
    "%YAML 9.9\n---",
    "|4\n",
)


def in_yaml(content: bytes, r: Random) -> bytes:
    """Another document in place of a YAML one: its tree changed, or its text."""
    kind = r.random()
    if kind < 0.2:
        return in_bytes(content, r)
    if kind < 0.5:
        lines = content.decode().splitlines()
        place = r.randrange(len(lines) + 1)
        part = r.choice(_YAML_PARTS)
        if place < len(lines) and ":" in lines[place]:
            lines[place] = f"{lines[place].partition(':')[0]}: {part}"
        else:
            lines.insert(place, part)
        return "\n".join(lines).encode()
    tree = in_tree(yaml.safe_load(content), r)
    with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError, ValueError):
        return str(yaml.safe_dump(tree)).encode()
    return json.dumps(tree).encode("utf-8", "surrogatepass")


_XML_HEADS = (
    '<!DOCTYPE a [<!ENTITY b "x">]>',
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    '<?xml version="1.0" encoding="utf-16"?>',
    '<?xml version="1.0" encoding="idna"?>',
    '<?xml version="1.0" encoding="zlib"?>',
    "\ufeff",
)


def in_xml(content: bytes, r: Random) -> bytes:
    """Another document in place of an XML one."""
    kind = r.random()
    if kind < 0.2:
        return in_bytes(content, r)
    if kind < 0.3:
        entity = r.choice(("", "&b;", "&#0;", "&#x1b;"))
        return r.choice(_XML_HEADS).encode() + content.replace(b">", b">" + entity.encode(), 3)
    root = ElementTree.fromstring(content)
    elements = list(root.iter())
    for _ in range(r.choice((1, 1, 2, 4))):
        element, other = r.choice(elements), r.choice(elements)
        change = r.randrange(6)
        if change == 0:
            element.tag = r.choice(("object", "name", "bndbox", "size", "annotation", "x"))
        elif change == 1 and element is not root:
            element.append(copy.deepcopy(other))
        elif change == 2:
            element.clear()
        elif change == 3:
            element.text = str(r.choice(NUMBERS))
        else:
            text = r.choice(TEXTS)
            element.text = text if text.isprintable() else "\u202e"
    return ElementTree.tostring(root, "utf-8")


def in_csv(content: bytes, r: Random) -> bytes:
    """Cells of a table changed, or its text."""
    if r.random() < 0.2:
        return in_bytes(content, r)
    rows = list(csv.reader(io.StringIO(content.decode())))
    for _ in range(r.choice((1, 1, 2, 4))):
        row = r.choice(rows)
        place = r.randrange(len(row) + 1)
        text = str(r.choice((*TEXTS, *NUMBERS[:-1])) if r.random() < 0.9 else "x" * 200_000)
        if place == len(row):
            row.append(text)
        elif r.random() < 0.1:
            del row[place]
        else:
            row[place] = text
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", escapechar="\\").writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


_OPCODES = (
    b"cposix\nsystem\n(S'true'\ntR", b"cbuiltins\neval\n(S'1'\ntR", b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR",
    b"ctorch\nTensor\n", b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n", b"ctorch.storage\nUntypedStorage\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nSize\n", b"cbuiltins\nbytearray\n",
    b"r\xff\xff\xff\xff", b"r\xff\xff\xff\x03", b"p99999999\n", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"X\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"R", b"b", b"o", b"i", b"\x81", b"\x92", b"t", b"l", b"d", b"}", b"]", b")", b"(", b"0", b"2", b"s", b"u", b"a",
    b"e", b"N", b"h\x00", b"h\x01", b"j\xff\xff\xff\x7f", b"Q", b"\x85", b"\x86", b"\x94", b"I00\n",
    b"L" + b"9" * 5000 + b"L\n",
    b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"G\x7f\xf8\0\0\0\0\0\0", b"]" * 2000,
)  # fmt: skip


def in_pickle(content: bytes, r: Random) -> bytes:
    """Operations of a pickle left out, doubled, exchanged, given other numbers or added."""
    if r.random() < 0.2:
        return in_bytes(content, r)
    try:
        starts = [place for _, _, place in pickletools.genops(content) if place is not None]
    except Exception:  # a pickle that was changed before
        return in_bytes(content, r)
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(r.choice((1, 1, 2, 3))):
        place = r.randrange(len(parts))
        change = r.randrange(6)
        if change == 0:
            parts[place] = b""
        elif change == 1:
            parts.insert(place, parts[place])
        elif change == 2:
            parts[place] = r.choice(parts)
        elif change == 3 and len(parts[place]) > 1:
            parts[place] = parts[place][:1] + in_bytes(parts[place][1:], r)
        elif change == 4:
            numbers = [i for i, part in enumerate(parts) if part[:1] in (b"K", b"M", b"J", b"\x8a")]
            if numbers:
                number = r.choice(_WORDS[:10])
                signed = min(number, 2**31 - 1)
                parts[r.choice(numbers)] = b"J" + struct.pack("<i", signed)
        else:
            parts.insert(place, r.choice(_OPCODES))
    return b"".join(parts)


def in_zip(content: bytes, r: Random) -> bytes:
    """A member of a zip file changed, left out, doubled or compressed, or the bytes of the file."""
    if r.random() < 0.25:
        return in_bytes(content, r)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = r.choice(list(members))
    change = r.randrange(8)
    if change == 0:
        del members[name]
    elif change == 1:
        members[r.choice(("../../escaped", "/escaped", "archive/data/9", "x/data.pkl"))] = members[name]
    elif change == 2:
        members[name] = in_bytes(members[name], r)
    elif change == 3:
        members[name] = bytes(r.choice((0, 1, 10**6)))
    else:
        pickled = next(each for each in members if each.endswith("data.pkl"))
        members[pickled] = in_pickle(members[pickled], r)
    out = io.BytesIO()
    method = r.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(out, "w", method) as archive:
        for member, body in members.items():
            archive.writestr(member, body)
    return out.getvalue()


def in_safetensors(content: bytes, r: Random) -> bytes:
    """The header of a safetensors file changed as JSON, its length, or the bytes of the file."""
    if r.random() < 0.3:
        return in_bytes(content, r)
    (length,) = struct.unpack("<Q", content[:8])
    header = in_json(content[8 : 8 + length], r)
    said = len(header) if r.random() < 0.9 else r.choice(_WORDS)
    return struct.pack("<Q", said) + header + content[8 + length :]


def in_gzip(content: bytes, r: Random) -> bytes:
    """What is packed changed as JSON, or the bytes of the packed file."""
    if r.random() < 0.3:
        return in_bytes(content, r)
    return gzip.compress(in_json(gzip.decompress(content), r), mtime=0)


def in_png(content: bytes, r: Random) -> bytes:
    """A chunk of a PNG file changed, with a right checksum, or the bytes of the file."""
    if r.random() < 0.3:
        return in_bytes(content, r)
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    at = r.randrange(len(chunks))
    kind, body = chunks[at]
    change = r.randrange(5)
    if change == 0:
        del chunks[at]
    elif change == 1:
        chunks.insert(at, chunks[r.randrange(len(chunks))])
    elif change == 2:
        extra = r.choice(
            (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"gAMA")
        )
        chunks.insert(at, (extra, b"a\0\0" + zlib.compress(bytes(r.choice((1, 10**7))))))
    else:
        chunks[at] = kind, in_bytes(body, r)
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return content[:8] + b"".join(packed)


def in_tiff(content: bytes, r: Random) -> bytes:
    """An entry of the directory of a little-endian TIFF file changed, or the bytes of the file."""
    if r.random() < 0.4 or content[:2] != b"II":
        return in_bytes(content, r)
    data = bytearray(content)
    (directory,) = struct.unpack("<I", data[4:8])
    (entries,) = struct.unpack("<H", data[directory : directory + 2])
    entry = directory + 2 + 12 * r.randrange(entries)
    field = r.choice(((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I")))
    size = struct.calcsize(field[1])
    word = r.choice((*_WORDS, directory, 0x112, 0x100, 0x101, 339)) & (2 ** (8 * size) - 1)
    data[entry + field[0] : entry + field[0] + size] = struct.pack(field[1], word)
    return bytes(data)


_TAR_FIELDS = (
    (0, 100),
    (100, 8),
    (124, 12),
    (124, 12),
    (156, 1),
    (156, 1),
    (157, 100),
    (257, 8),
    (345, 155),
    (386, 109),
)


def in_tar(content: bytes, r: Random) -> bytes:
    """A field of a header in a tar file changed, with a right checksum, or a block, or the bytes of the file."""
    kind = r.random()
    if kind < 0.25:
        return in_bytes(content, r)
    data = bytearray(content)
    blocks = range(0, len(data) - 511, 512)
    if kind < 0.35:
        at, other = r.choice(blocks), r.choice(blocks)
        return bytes(
            data[:at] + data[other : other + 512 * r.randrange(4)] + data[at + 512 * r.randrange(2) :]
        )
    at = r.choice([block for block in blocks if data[block + 257 : block + 262] == b"ustar"])
    place, length = r.choice(_TAR_FIELDS)
    if length == 1:
        value = r.choice(
            [b"0", b"1", b"2", b"3", b"5", b"7", b"x", b"g", b"L", b"K", b"S", b"N", b"\0", b"\xff"]
        )
    elif length == 12 and r.random() < 0.5:
        value = b"\x80" + r.choice(_WORDS).to_bytes(11, "big")
    elif length <= 12:
        value = b"%0*o" % (length - 1, r.choice(_WORDS))
    else:
        value = r.choice(TEXTS).encode("utf-8", "surrogatepass")
    data[at + place : at + place + length] = value[:length].ljust(length, b"\0")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


_BY_ENDING: dict[str, Mutation] = {
    ".json": in_json,
    ".jsonl": in_json_lines,
    ".yaml": in_yaml,
    ".xml": in_xml,
    ".csv": in_csv,
    ".pkl": in_pickle,
    ".pth": in_zip,
    ".pt": in_zip,
    ".safetensors": in_safetensors,
    ".gz": in_gzip,
    ".png": in_png,
    ".tif": in_tiff,
    ".tar": in_tar,
}


def of_file(name: str, content: bytes, r: Random) -> bytes:
    """The content of a file changed as its ending suggests; of other files, and of a legacy pickle, the bytes."""
    mutation = next((each for ending, each in _BY_ENDING.items() if name.endswith(ending)), in_bytes)
    if mutation is in_zip and not content.startswith(b"PK"):
        mutation = in_bytes
    try:
        return mutation(content, r)
    except Exception:  # a file that was changed before is no longer of its kind
        return in_bytes(content, r)
