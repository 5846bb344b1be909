"""Compressed field sections: RFC 7541."""

import hpack

from case import Case, ends, has_reset
from client import COMPRESSION_ERROR, HEADER_TABLE_SIZE, PROTOCOL_ERROR, Client, get, headers, request
from expect import Answered, ConnectionFails, Meets, require

# RFC 9113, section 4.3, has COMPRESSION_ERROR, and h2 says PROTOCOL_ERROR. It ends the connection, as section 5.4.1 demands; a code changes
# nothing else (section 7).
UNDECODED = ConnectionFails(COMPRESSION_ERROR, PROTOCOL_ERROR)

# The first of the dynamic table.
NEWEST = b"\xbe"
# How a literal begins, with a new name: with indexing, without, never.
INDEXED, PLAIN, NEVER = b"\x40", b"\x00", b"\x10"
REQUEST = request("GET", "/headers")


def string(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def huffman(text: bytes) -> bytes:
    coded = hpack.Encoder().huffman_coder.encode(text)
    return bytes([0x80 | len(coded)]) + coded


def with_fields(*pieces: bytes, stream: int = 1):
    """A request with these bytes behind its fields; the origin sends back what it gets."""
    return headers(stream, REQUEST + b"".join(pieces), "END_STREAM")


def before_fields(*pieces: bytes, stream: int = 1):
    return headers(stream, b"".join(pieces) + REQUEST, "END_STREAM")


def resized(size: int) -> bytes:
    """A change of the dynamic table's size (section 6.3)."""
    coded = hpack.hpack.encode_integer(size, 5)
    coded[0] |= 0x20
    return bytes(coded)


FIELD = string(b"x-a") + string(b"b")

INDEXING = [
    Case("7541 2.3.3", "an index above both tables", [with_fields(b"\xfe")], UNDECODED),
    Case("7541 2.3.3", "the first index of an empty dynamic table", [with_fields(NEWEST)], UNDECODED),
    Case("7541 2.3.3", "a literal whose name has no entry", [with_fields(b"\x7f\x3f" + string(b"b"))], UNDECODED),
    Case("7541 6.1", "the index 0", [with_fields(b"\x80")], UNDECODED),
    Case("7541 6.1", "an entry of the static table", [with_fields(b"\x90")], Answered(contains=b"accept-encoding: gzip, deflate")),
    Case("7541 6.1", "an entry of the dynamic table", [with_fields(INDEXED + FIELD, NEWEST)], Answered(contains=b"x-a: b")),
    Case(
        "7541 2.3.2",
        "an entry that an earlier request has made",
        [with_fields(INDEXED + FIELD), ends(), with_fields(NEWEST, stream=3)],
        Answered(contains=b"x-a: b", stream=3),
    ),
    Case(
        "7541 2.3.2",
        "the second entry is the older",
        [with_fields(INDEXED + FIELD, INDEXED + string(b"x-c") + string(b"d")), ends(), with_fields(b"\xbf", stream=3)],
        Answered(contains=b"x-a: b", lacks=b"x-c", stream=3),
    ),
    Case(
        "7541 2.2",
        "an entry of a request that was malformed",
        [with_fields(PLAIN + string(b"connection") + string(b"close"), INDEXED + FIELD), has_reset(), with_fields(NEWEST, stream=3)],
        Answered(contains=b"x-a: b", stream=3),
    ),
    Case(
        "7541 2.2",
        "an entry of a request that was refused",
        [with_fields(PLAIN + string(b"host") + string(b"other"), INDEXED + FIELD), ends(), with_fields(NEWEST, stream=3)],
        Answered(contains=b"x-a: b", stream=3),
    ),
]

LITERALS = [
    *(
        Case("7541 6.2", f"{kind}, {name}", [with_fields(first + value)], Answered(contains=expected))
        for kind, bits in [("with indexing", 0x40), ("without indexing", 0), ("never indexed", 0x10)]
        for name, first, value, expected in [
            ("a new name", bytes([bits]), FIELD, b"x-a: b"),
            ("a new name in Huffman", bytes([bits]), huffman(b"x-long") + huffman(b"value"), b"x-long: value"),
            # 5 is :path, 15 accept-charset, which fits into four bits as 0x0f 0x00.
            ("a name of the static table", bytes([bits | 0x0F]) + (b"" if bits == 0x40 else b"\0"), string(b"b"), b"accept-charset: b"),
        ]
    ),
    Case("7541 6.2.2", "a field without indexing is not in the table", [with_fields(PLAIN + FIELD, NEWEST)], UNDECODED),
    Case("7541 6.2.3", "nor is one that is never indexed", [with_fields(NEVER + FIELD, NEWEST)], UNDECODED),
    Case(
        "7541 6.2.1",
        "a literal with a name of the dynamic table",
        [with_fields(INDEXED + FIELD, b"\x7e" + string(b"again"))],
        Answered(contains=b"x-a: again"),
    ),
]

INTEGERS = [
    Case("7541 5.1", "an integer that no number has room for", [with_fields(b"\xff" + b"\xff" * 10 + b"\x0f")], UNDECODED),
    Case("7541 5.1", "an integer that breaks off", [with_fields(b"\xff\x80")], UNDECODED),
    Case(
        "7541 5.1",
        "a length in several bytes",
        [with_fields(PLAIN + string(b"x-a") + b"\x7f\x49" + b"b" * 200)],
        Answered(contains=b"b" * 200),
    ),
]

STRINGS = [
    Case("7541 5.2", "a string that is longer than the section", [with_fields(PLAIN + string(b"x-a") + b"\x7eb")], UNDECODED),
    Case("7541 5.2", "a name without a value", [with_fields(PLAIN + string(b"x-a"))], UNDECODED),
    Case("7541 5.2", "a literal without a name", [with_fields(PLAIN)], UNDECODED),
    # "a" is 00011, and three bits of ones behind it are its padding.
    Case("7541 5.2", "padding of Huffman", [with_fields(PLAIN + string(b"x-a") + b"\x81\x1f")], Answered(contains=b"x-a: a")),
    Case("7541 5.2", "padding of more than 7 bits", [with_fields(PLAIN + string(b"x-a") + b"\x82\x1f\xff")], UNDECODED),
    Case("7541 5.2", "padding of zeros", [with_fields(PLAIN + string(b"x-a") + b"\x81\x18")], UNDECODED),
    Case("7541 5.2", "the end of a string as a symbol", [with_fields(PLAIN + string(b"x-a") + b"\x84\xff\xff\xff\xff")], UNDECODED),
]

SIZES = [
    Case("7541 4.2", "a change at the beginning", [before_fields(resized(100))], Answered()),
    Case("7541 4.2", "two changes at the beginning", [before_fields(resized(0), resized(4096))], Answered()),
    Case("7541 4.2", "a change behind the fields", [with_fields(resized(100))], UNDECODED),
    Case("7541 4.2", "a change between the fields", [with_fields(INDEXED + FIELD, resized(100), NEWEST)], UNDECODED),
    Case("7541 6.3", "a size above HEADER_TABLE_SIZE", [before_fields(resized(4097))], UNDECODED),
    Case("7541 6.3", "a size far above it", [before_fields(resized(2**30))], UNDECODED),
    Case("7541 6.3", "HEADER_TABLE_SIZE itself", [before_fields(resized(4096))], Answered()),
    Case(
        "7541 4.3",
        "a size of 0 empties the table",
        [with_fields(INDEXED + FIELD), ends(), headers(3, resized(0) + REQUEST + NEWEST, "END_STREAM")],
        UNDECODED,
    ),
    Case(
        "7541 4.3",
        "a size that has room for one entry",
        [
            with_fields(INDEXED + FIELD, INDEXED + string(b"x-c") + string(b"d")),
            ends(),
            headers(3, resized(40) + REQUEST + NEWEST, "END_STREAM"),
        ],
        Answered(contains=b"x-c: d", stream=3),
    ),
    Case(
        "7541 4.4",
        "an entry larger than the table is no error",
        [before_fields(resized(36)), ends(), with_fields(INDEXED + string(b"x-long") + string(b"value"), stream=3)],
        Answered(contains=b"x-long: value", stream=3),
    ),
    Case(
        "7541 4.4",
        "and empties it",
        [
            before_fields(resized(36)),
            ends(),
            with_fields(INDEXED + FIELD, INDEXED + string(b"x-long") + string(b"value"), NEWEST, stream=3),
        ],
        UNDECODED,
    ),
]


def decodes(client: Client) -> None:
    """Responses decode with the tables that this client allows, whatever that is: the client's books see to it."""
    for stream in (1, 3, 5):
        client.send(get(stream, "/status/404"))
        require(client.response(stream)[0].status == 404, "another status")


ENCODER = [
    Case("7541 4.2", "the proxy's heads", [], Meets("decode", decodes)),
    Case(
        "7541 4.2", "the proxy's heads, with a table of 0 bytes", [], Meets("decode without a table", decodes), own={HEADER_TABLE_SIZE: 0}
    ),
    Case("7541 4.2", "the proxy's heads, with a table of 64 bytes", [], Meets("decode", decodes), own={HEADER_TABLE_SIZE: 64}),
    Case("7541 4.2", "the proxy's heads, with a table of 64 KiB", [], Meets("decode", decodes), own={HEADER_TABLE_SIZE: 65536}),
]

CASES = [*INDEXING, *LITERALS, *INTEGERS, *STRINGS, *SIZES, *ENCODER]
