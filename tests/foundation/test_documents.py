"""Documents with a seal, and YAML."""

import json

import pytest

from twinbench.foundation.documents import SEAL, from_yaml, sealed, unsealed

DOCUMENT = {"b": [1.0, 2.5e-17, float("inf"), None], "a": {"ü": "\ud800", "1": True}, "text": "52.0"}


def test_what_is_sealed_is_read_without_its_seal():
    assert unsealed(sealed(DOCUMENT)) == DOCUMENT
    assert SEAL in json.loads(sealed(DOCUMENT))


def test_the_order_and_the_white_space_are_no_matter():
    turned = dict(reversed(json.loads(sealed(DOCUMENT)).items()))
    assert unsealed(json.dumps(turned, indent=4)) == DOCUMENT


def test_a_key_that_is_no_text_is_sealed_as_it_is_read():
    assert unsealed(sealed({10: "ten", 9: "nine"})) == {"10": "ten", "9": "nine"}


def test_every_bit_that_turns_over_is_noticed_or_changes_nothing():
    content = sealed(DOCUMENT)
    read = 0
    for bit in range(8 * len(content)):
        altered = bytearray(content)
        altered[bit // 8] ^= 1 << bit % 8
        try:
            document = unsealed(bytes(altered))
        except ValueError:
            continue
        read += 1
        # of a key that is no longer that of the seal one knows nothing, but all else is as it was
        assert {key: document[key] for key in DOCUMENT} == DOCUMENT, bit
    assert read < len(content)


@pytest.mark.parametrize("content", ["[1]", "7", '{"a": 1}'])
def test_what_has_no_seal_is_read_as_it_is(content):
    assert unsealed(content) == json.loads(content)


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "x: [{b: 1, c: 2, b: 1}]\n", "a: 1\n'a': 2\n"])
def test_a_key_that_stands_twice_is_refused_with_its_line(text):
    with pytest.raises(ValueError, match=r"the key '[ab]' stands here a second time\n.*line [12]"):
        from_yaml(text)


def test_what_is_merged_into_a_mapping_may_be_replaced_there():
    assert from_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n")["y"] == {"a": 1, "b": 3}
