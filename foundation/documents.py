"""JSON and YAML from outside, parsed within bounds.

Whatever is wrong with a document is a ValueError: its syntax, text that is not UTF-8, containers in containers without
end, a number of thousands of digits. YAML's aliases let a page of text stand for more values than any memory holds, or
for a list that holds itself; as soon as somebody walks through such a document it does not end. So its values are
counted, each as often as it is met, and LARGEST is the most.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

LARGEST = 1_000_000
"""Values in a YAML document, aliases followed. The largest study of ours has some thousand."""
SEAL = "sha256_of_rest"
"""The key of a document of ours that tells whether the rest is as it was written."""
_MOST_BITS = 4096  # Python neither writes nor reads many more decimals

# The same language in C: a large plan reads some hundred recipes, each a hundredth of a second in Python. The parser in
# C refuses what is nested deeper than a thousand times.
_SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGED = "tag:yaml.org,2002:merge"  # what `<<` brings in may be replaced


class _Loader(_SAFE_LOADER):
    """Refuses a key that stands twice in a mapping, of which YAML's own loader takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set[tuple[str, str]]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGED:
                if (key.tag, key.value) in keys:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands here a second time", key.start_mark
                    )
                keys.add((key.tag, key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def from_json(content: str | bytes) -> Any:
    """The value of a JSON document; raises ValueError for anything else."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sealed(document: Mapping[str, Any]) -> bytes:
    """A mapping as JSON with a seal: a bit that a disk turns over in it is noticed, where a number would be another."""
    rest = json.loads(json.dumps(document))
    return json.dumps({**rest, SEAL: _seal(rest)}, indent=1, sort_keys=True).encode()


def unsealed(content: str | bytes) -> Any:
    """The value of a JSON document without its seal, if it has one; raises ValueError also for one with a wrong seal.

    Documents of earlier versions have none.
    """
    document = from_json(content)
    if isinstance(document, dict) and SEAL in document and document.pop(SEAL) != _seal(document):
        raise ValueError("it is not as it was written")
    return document


def _seal(rest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def from_yaml(content: str) -> Any:
    """The value of a YAML document of plain values; raises ValueError for anything else."""
    try:
        document = yaml.load(content, _Loader)
        _count(document)
    except RecursionError as error:
        raise ValueError("it is nested too deeply, or an alias stands inside what it names") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (
        TypeError,
        ArithmeticError,
        LookupError,
        AttributeError,
    ) as error:  # of a tag and a value that do not fit
        raise ValueError(f"a value cannot be read: {error}") from error
    return document


def _count(document: Any) -> int:
    """How many values there are with aliases followed. Raises ValueError for too many, RecursionError for no end."""
    known: dict[int, int] = {}  # what an alias stands for is counted once

    def count(node: Any) -> int:
        if (
            isinstance(node, int) and node.bit_length() > _MOST_BITS
        ):  # written in base 16, or 60, which has no limit
            raise ValueError(f"a number of {node.bit_length()} bits")
        if not isinstance(node, dict | list | set | tuple):
            return 1
        if id(node) not in known:
            parts = [*node, *node.values()] if isinstance(node, dict) else node
            total = 1 + sum(count(part) for part in parts)
            if total > LARGEST:
                raise ValueError(f"its aliases stand for more than {LARGEST} values")
            known[id(node)] = total
        return known[id(node)]

    return count(document)
