import pytest

from pipeline.base.words import counted, duration, printable


def test_control_characters_are_escaped():
    assert printable("a\x1b[31mé\n\\x") == "a\\x1b[31mé\\n\\x"


def test_one_is_not_many():
    found = [counted(n, "path") for n in (0, 1, 2, 5712)]
    assert found == ["0 paths", "1 path", "2 paths", "5,712 paths"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (599, "9 min 59 s"),
        (1500, "25 min"),
        (3725, "1 h 02 min"),
        (86400 * 3 + 7300, "3 d 2 h"),
    ],
)
def test_durations_are_words(seconds, text):
    assert duration(seconds) == text
