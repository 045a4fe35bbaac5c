"""Real files, changed as accidents and attackers change them.

All choices come from the `random.Random` that is given.
"""

import contextlib
import io
import pickle
import pickletools
import re
import struct
import zipfile
import zlib

NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
]
DESCRIPTIONS = [
    "|O",
    "<U1",
    "<U1000000",
    "|V8",
    "<f8",
    ">i8",
    "|S5",
    "<M8[D]",
    "|b1",
    "<c16",
    "<U0",
    "",
    "|u1",
]
SHAPES = [
    "()",
    "(0,)",
    "(-1,)",
    "(6,)",
    "(1000000000000,)",
    "(2, 3, 8, 8)",
    "(6, -3, -8, 8)",
    "(True,)",
    "(6.0,)",
    "(" * 90,
    "(9" + "9" * 30 + ",)",
]
VALUES = [
    *(
        "1e999999999",
        "1e-999999999",
        "9/1e-9999999",
        "1/0",
        "*a",
        "&a [*a]",
        "!!python/object/apply:os.system [touch harmed]",
        "9" * 5000,
    ),
    *(
        "0x" + "F" * 900,
        "2001-99-99",
        "2001-12-14t21:59:43.10-99:99",
        ".inf",
        "-.inf",
        ".nan",
        "-1",
        "0",
        "null",
        "~",
        "[" * 30,
        "{a: " * 30,
    ),
    *(
        "!!binary aGk=",
        "!!binary x",
        "!!int x",
        "!!float x",
        "!!set {a}",
        "!!omap [a]",
        "!!pairs [a]",
        "!!timestamp x",
        "!!bool x",
        "<<: 1",
    ),
    *(
        '"\\x1b[31m"',
        '"\\ud800"',
        "\u202e",
        "190:20:30",
        "0o9",
        "1_0",
        "%YAML 9.9",
        "--- ",
        "? [a, b]",
        "!<x> y",
        "!!merge x",
        '"\\UFFFFFFFF"',
    ),
]

# In the header of a safetensors file, and in the JSON inside it: numbers, dtypes, names.
HEADER_EDITS = [
    (
        rb"\d+",
        [
            *(str(number).encode() for number in NUMBERS),
            b"-1",
            b"1.0",
            b"1e999",
            b"true",
            b"[]",
            b"9" * 5000,
        ],
    ),
    (rb"F32|I64", [b"F64", b"F16", b"BF16", b"I32", b"U8", b"BOOL", b"F4", b"X"]),
    (
        rb'\\?"[^"\\]*\\?"',
        [b'""', b"null", b"{}", b'"\\ud800"', b'"__metadata__"', b"[" * 5000, b'\\"\\"', b"NaN"],
    ),
    (rb"[\[\]{}:,]", [b"", b"[", b"}", b",,"]),
]

# What reading a file raises that was changed so much before that its structure cannot be followed.
UNFIT = (
    ValueError,
    LookupError,
    EOFError,
    RuntimeError,
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


def mutate(content, others, kind, rng):
    """Return a changed copy.

    Two times in three it is changed with knowledge of the format, otherwise in any bytes. Now and
    then it is changed in both ways.
    """
    if rng.random() < 2 / 3:
        try:
            content = STRUCTURED[kind](content, others, rng)
        except UNFIT:
            content = any_bytes(content, others, rng)
        return content if rng.random() < 0.9 else any_bytes(content, others, rng)
    return any_bytes(content, others, rng)


def any_bytes(content, others, rng):
    """Flipped bits, edited numbers, lost, doubled and foreign pieces."""
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        place, length = rng.randrange(len(changed) or 1), rng.choice([1, 2, 4, 8, 16, 100, 1000])
        match rng.randrange(8):
            case 0 | 1:
                if changed:
                    changed[place] ^= 1 << rng.randrange(8)
            case 2 | 3:
                edit_number(changed, place, rng)
            case 4:
                del changed[place:]
            case 5:
                del changed[place : place + length]
            case 6:
                changed[place:place] = changed[place : place + length]
            case _:
                other = rng.choice(others)
                start = rng.randrange(len(other) or 1)
                changed[place : place + length] = other[start : start + length]
    return bytes(changed)


def edit_number(changed, place, rng):
    """Replace a field of 1, 2, 4 or 8 bytes, in either byte order.

    The new value is a telling number or one near the old value.
    """
    width, order = rng.choice([1, 2, 4, 8]), rng.choice(["little", "little", "little", "big"])
    place -= place % width
    old = int.from_bytes(changed[place : place + width], order)
    new = (
        rng.choice([rng.choice(NUMBERS), old + rng.choice([-1, 1, 8, 256]), old * 2, -old])
        % 256**width
    )
    changed[place : place + width] = new.to_bytes(width, order)


def yaml_text(content, others, rng):
    """Other values, lines moved, doubled, dropped or indented."""
    lines = content.decode().split("\n")
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = rng.randrange(len(lines))
        match rng.randrange(7):
            case 0 | 1 | 2:
                lines[place] = re.sub(
                    r"(: *).*", lambda found: found[1] + rng.choice(VALUES), lines[place], count=1
                )
            case 3:
                lines.insert(rng.randrange(len(lines)), lines[place])
            case 4:
                del lines[place : place + rng.choice([1, 3, 10])]
                lines = lines or [""]
            case 5:
                lines[place] = " " * rng.randrange(9) + lines[place]
            case _:
                lines[place] = rng.choice(VALUES)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def archive(content, others, rng, inner):
    """Return a sound zip archive around a changed member, stored or compressed.

    Now and then it has a member too many or too few.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = {member.filename: old.read(member) for member in old.infolist()}
    name = rng.choice([*members, *[name for name in members if name.endswith(".pkl")] * 3])
    match rng.randrange(8):
        case 0:
            members[name] = rng.choice(
                [b"", b"\0" * 10_000_000, members[rng.choice(list(members))]]
            )
        case 1:
            members["../" * 3 + "escaped" + name] = members.pop(name)
        case _:
            members[name] = inner(members[name], list(members.values()), rng)
    written = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED] * 6 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    with zipfile.ZipFile(written, "w", method) as new:
        for member, held in members.items():
            new.writestr(member, held)
    return written.getvalue()


def npy(content, others, rng):
    """An array with another header of the right length, or other bytes."""
    if rng.random() < 0.3:
        return any_bytes(content, others, rng)
    length = struct.unpack("<H", content[8:10])[0]
    header = content[10 : 10 + length].decode("latin1")
    for pattern, choices in (
        (r"'descr': '[^']*'", [f"'descr': '{text}'" for text in DESCRIPTIONS]),
        (r"'shape': \([^)]*\)", SHAPES),
    ):
        if rng.random() < 0.6:
            choice = rng.choice(choices)
            header = re.sub(
                pattern,
                lambda _, text=choice: text if "descr" in text else f"'shape': {text}",
                header,
            )
    raw = header.encode("latin1")
    return (
        b"\x93NUMPY"
        + rng.choice([b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0"])
        + struct.pack("<H", len(raw))
        + raw
        + content[10 + length :]
    )


def pickled(content, others, rng):
    """Pickles, one after the other, with steps dropped, doubled, put in or with other arguments."""
    if not content.startswith(pickle.PROTO):
        return any_bytes(content, others, rng)
    places, file = [], io.BytesIO(content)
    with contextlib.suppress(*UNFIT):
        while True:
            places += [place for _, _, place in pickletools.genops(file)]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        index = rng.randrange(len(places) - 1)
        first, last = places[index], places[index + 1]
        step = rng.choice(pickletools.opcodes).code.encode("latin1")
        match rng.randrange(6):
            case 0:
                changed[first:last] = b""
            case 1:
                changed[first:first] = bytes(changed[first:last]) * rng.choice([1, 1, 50])
            case 2:
                changed[first:first] = step + rng.choice(
                    [b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"posix\nsystem\n", b"\5\0\0\0hello"]
                )
            case 3:
                edit_number(changed, min(first + 1, len(changed) - 1), rng)
            case 4:
                changed[first : first + 1] = step
            case _:
                start = rng.randrange(len(places) - 1)
                changed[first:first] = content[
                    places[start] : places[min(start + rng.choice([1, 5, 20]), len(places) - 1)]
                ]
    return bytes(changed)


def hdf5(content, others, rng):
    """Edited numbers where HDF5 keeps its structures, checksums made right again."""
    changed = bytearray(content)
    found = [
        m.start()
        for m in re.finditer(
            rb"OHDR|SNOD|TREE|HEAP|GCOL|\x89HDF|FRHP|BTHD|BTLF|FAHD|FADB|FHDB|EAHD", content
        )
    ]
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = (
            rng.choice(found) + rng.randrange(4, 200)
            if rng.random() < 0.8
            else rng.randrange(len(changed))
        )
        place = min(place, len(changed) - 8)
        if rng.random() < 0.5:
            changed[place] = rng.choice([*range(32), 255])
        else:
            edit_number(changed, place, rng)
    for place in found:
        mend(changed, place)
    return bytes(changed)


def mend(changed, place):
    """Give an object header or a superblock the checksum of its present content.

    Object headers of version 2, and superblocks of version 2 or 3, have one.
    """
    if changed[place : place + 4] == b"\x89HDF" and changed[place + 8] in (2, 3):
        end = place + 44
    elif changed[place : place + 4] == b"OHDR":
        flags = changed[place + 5]
        width, before = 1 << (flags & 3), 6 + 16 * bool(flags & 32) + 4 * bool(flags & 16)
        end = (
            place
            + before
            + width
            + int.from_bytes(changed[place + before : place + before + width], "little")
        )
    else:
        return
    if end + 4 <= len(changed):
        changed[end : end + 4] = struct.pack("<I", lookup3(bytes(changed[place:end])))


def lookup3(key):
    """Return Jenkins' hash, HDF5's checksum of metadata.

    Source: http://burtleburtle.net/bob/c/lookup3.c, hashlittle.
    """
    mask = 0xFFFFFFFF

    def turn(value, by):
        return (value << by | value >> 32 - by) & mask

    a = b = c = 0xDEADBEEF + len(key) & mask
    while len(key) > 12:
        x, y, z = struct.unpack("<III", key[:12])
        a, b, c, key = a + x & mask, b + y & mask, c + z & mask, key[12:]
        a = (a - c & mask) ^ turn(c, 4)
        c = c + b & mask
        b = (b - a & mask) ^ turn(a, 6)
        a = a + c & mask
        c = (c - b & mask) ^ turn(b, 8)
        b = b + a & mask
        a = (a - c & mask) ^ turn(c, 16)
        c = c + b & mask
        b = (b - a & mask) ^ turn(a, 19)
        a = a + c & mask
        c = (c - b & mask) ^ turn(b, 4)
        b = b + a & mask
    if not key:
        return c
    x, y, z = struct.unpack("<III", key.ljust(12, b"\0"))
    a, b, c = a + x & mask, b + y & mask, c + z & mask
    c = (c ^ b) - turn(b, 14) & mask
    a = (a ^ c) - turn(c, 11) & mask
    b = (b ^ a) - turn(a, 25) & mask
    c = (c ^ b) - turn(b, 16) & mask
    a = (a ^ c) - turn(c, 4) & mask
    b = (b ^ a) - turn(a, 14) & mask
    return (c ^ b) - turn(b, 24) & mask


def torch_file(content, others, rng):
    """Return a torch.save file with another pickle in it.

    The pickles are in an archive or, as in older files, one after the other.
    """
    if content[8:9] == b"{":
        return safetensors(content, others, rng)
    return (
        archive(content, others, rng, pickled)
        if content.startswith(b"PK")
        else pickled(content, others, rng)
    )


def safetensors(content, others, rng):
    """Return a file whose header has other numbers, dtypes and words.

    The header has the length that the file claims, or another one.
    """
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]
    for _ in range(rng.choice([1, 1, 2, 3])):
        pattern, choices = rng.choice(HEADER_EDITS)
        found = list(re.finditer(pattern, header))
        if not found:
            continue
        start, end = rng.choice(found).span()
        header = header[:start] + rng.choice(choices) + header[end:]
    if rng.random() < 0.2:
        header = any_bytes(header, others, rng)
    claimed = len(header) if rng.random() < 0.9 else rng.choice([*NUMBERS, length])
    return struct.pack("<Q", claimed) + header + tensors


STRUCTURED = {
    "yaml": yaml_text,
    "npz": lambda content, others, rng: archive(content, others, rng, npy),
    "npy": npy,
    "zip": lambda content, others, rng: (
        archive(content, others, rng, any_bytes)
        if content.startswith(b"PK")
        else any_bytes(content, others, rng)
    ),
    "safetensors": safetensors,
    "torch": torch_file,
    "hdf5": hdf5,
    "image": any_bytes,
}
