"""The hashes of Xet. That they are hf_xet's own is shown in test_xet_client.py."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import IntegrityError
from adapterhub.hub.xet import hashing

Pair = tuple[bytes, int]


def slow_root(pairs: list[Pair]) -> bytes:
    """The tree level by level, with every level in memory."""
    while len(pairs) > 1:
        above: list[Pair] = []
        while pairs:
            cut = min(len(pairs), 9)
            for at in range(2, cut):
                if int.from_bytes(pairs[at][0][24:], "little") % 4 == 0:
                    cut = at + 1
                    break
            lines = "".join(f"{hashing.to_hex(d)} : {n}\n" for d, n in pairs[:cut])
            node = hashing._keyed(hashing.NODE_KEY, lines.encode())
            above.append((node, sum(n for _, n in pairs[:cut])))
            pairs = pairs[cut:]
        pairs = above
    return pairs[0][0] if pairs else bytes(32)


@given(st.integers(0, 600), st.integers(0, 2**32))
def test_the_tree_that_grows_is_the_tree_made_at_once(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [(rng.bytes(32), int(rng.integers(1, 131073))) for _ in range(count)]
    assert hashing.xorb_hash(pairs) == slow_root(pairs)
    if pairs:
        assert hashing.file_hash(pairs) == hashing._keyed(bytes(32), slow_root(pairs))


def test_no_chunks_have_the_hash_zero() -> None:
    assert hashing.xorb_hash([]) == hashing.file_hash([]) == bytes(32)


def test_a_xorb_of_one_chunk_has_its_hash() -> None:
    digest = hashing.chunk_hash(b"hello")
    assert hashing.xorb_hash([(digest, 5)]) == digest


def test_hexadecimal_reverses_each_eight_bytes() -> None:
    digits = hashing.to_hex(bytes(range(32)))
    assert digits == "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"
    assert hashing.from_hex(digits) == bytes(range(32))


@pytest.mark.parametrize(
    "digits", ["", "ab", "g" * 64, "A" * 64, "../" * 22, " " + "a" * 63, "a" * 65, "١" * 64]
)
def test_what_is_not_a_hash_is_refused(digits: str) -> None:
    with pytest.raises(IntegrityError, match="is not a Xet hash: 64 lowercase"):
        hashing.from_hex(digits)


def test_the_message_quotes_little_of_what_came() -> None:
    with pytest.raises(IntegrityError) as caught:
        hashing.from_hex("x" * 10_000)
    assert len(caught.value.message) < 200
    assert re.match("'x+' is not", caught.value.message)
