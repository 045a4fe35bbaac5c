import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.prepare.sources import labels

PLAIN = np.array([0, 1, 2, 0, 1, 2])


def classes_of(values, names=None):
    return labels.classes_of("x", values, len(PLAIN), names)


@pytest.mark.parametrize(
    "values",
    [
        *(PLAIN.astype(kind) for kind in (">i8", "<i2", ">u4", "u8", "i1", "f4", "f8")),
        PLAIN[:, None],
        PLAIN[None],
        PLAIN[:, None, None, None],
        np.eye(3)[PLAIN],
        np.eye(3, dtype=bool)[PLAIN],
        np.array(PLAIN.tolist(), dtype=object),
    ],
    ids=lambda values: f"{values.dtype}-{values.shape}",
)
def test_every_form_of_numbers_gives_the_same_labels(values):
    numbers, names, notes = classes_of(values)
    assert numbers.tolist() == PLAIN.tolist()
    assert numbers.dtype == np.int64
    assert names == ("0", "1", "2")
    assert set(notes) <= {"labels read from one-hot rows"}


def test_bool_labels_are_two_classes():
    numbers, names, _ = classes_of(PLAIN > 0)
    assert numbers.tolist() == [0, 1, 1, 0, 1, 1]
    assert names == ("0", "1")


@pytest.mark.parametrize(
    "values",
    [
        np.array(["cat", "dog", "eel"])[PLAIN],
        np.array([b"cat", b"dog", b"eel"])[PLAIN],
        np.array(["cat", "dog", "eel"], dtype=object)[PLAIN],
        np.array([b"cat", b"dog", b"eel"], dtype=object)[PLAIN, None],
    ],
)
def test_text_names_the_classes(values):
    numbers, names, notes = classes_of(values)
    assert numbers.tolist() == PLAIN.tolist()
    assert names == ("cat", "dog", "eel")
    assert notes == {"labels read as the names of classes": 6}


def test_text_of_numbers_is_in_numerical_order():
    numbers, names, _ = classes_of(np.array(["9", "10", "2"])[PLAIN])
    assert names == ("2", "9", "10")
    assert numbers.tolist() == [1, 2, 0, 1, 2, 0]


def test_text_takes_the_order_of_the_class_names():
    numbers, names, _ = classes_of(np.array(["a", "b", "c"])[PLAIN], ("c", "b", "a"))
    assert names == ("c", "b", "a")
    assert numbers.tolist() == [2, 1, 0, 2, 1, 0]


def test_a_repeated_class_name_is_taken_once():
    numbers, names, _ = classes_of(np.array(["a", "b", "c"])[PLAIN], ("c", "b", "c", "a"))
    assert names == ("c", "b", "a")
    assert numbers.tolist() == [2, 1, 0, 2, 1, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [(PLAIN, ("0", "1", "2")), (np.array(["b", "a", "c"])[PLAIN], ("a", "b", "c"))],
)
def test_a_name_for_each_image_names_no_class(values, expected):
    _, names, notes = classes_of(values, tuple(np.array(["b", "a", "c"])[PLAIN]))
    assert names == expected
    assert notes["names of classes left out, because there is one for each image"] == 6
    each = np.arange(6)
    assert classes_of(each, tuple("abcdef"))[1] == tuple("abcdef"), "as many classes as images"


@pytest.mark.parametrize(
    ("values", "names", "reason"),
    [
        (PLAIN + 1, ("1", "2", "3"), "they begin at 1"),
        (PLAIN * 2, ("0", "2", "4"), "of gaps after 0"),
        (np.eye(4)[PLAIN][:, [3, 0, 1, 2]], ("1", "2", "3"), "they begin at 1"),
        (np.array([0, 1, 2**64 - 1], dtype="u8")[PLAIN], ("0", "1", str(2**64 - 1)), "after 1"),
    ],
)
def test_other_numbers_are_numbered_again(values, names, reason):
    numbers, found, notes = classes_of(values)
    assert numbers.tolist() == PLAIN.tolist()
    assert found == names
    assert any(words.endswith(f"because {reason}") or reason in words for words in notes)


@pytest.mark.parametrize(
    ("values", "given_names", "names"),
    [
        (PLAIN, ("a", "b", "c"), ("a", "b", "c")),
        (PLAIN + 1, ("a", "b", "c"), ("a", "b", "c")),
        (PLAIN * 2, ("a", "b", "c", "d", "e"), ("a", "c", "e")),
        (PLAIN, ("a", "b", "c", "d"), ("a", "b", "c")),
    ],
)
def test_class_names_follow_their_numbers(values, given_names, names):
    _, found, notes = classes_of(values, given_names)
    assert found == names
    n_left_out = len(given_names) - len(names)
    assert notes["names of classes without images left out"] == n_left_out


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(InputError, match="another name for each class, found 'b' for 1 and 2$"):
        classes_of(PLAIN, ("a", "b", "b"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (PLAIN[:5], r"expected one for each of 6 images, found shape \(5,\)"),
        (np.ones((6, 2)), r"found shape \(6, 2\), which is not one-hot; save one label per image"),
        (PLAIN + 0.5, "expected whole numbers, found 0.5 in row 0"),
        (np.where(PLAIN == 1, np.nan, 0), "expected whole numbers, found nan in row 1"),
        (PLAIN - 1, "expected 0 or more, found -1"),
        (PLAIN * 0, "expected at least two classes, found 0 alone"),
        (np.array(["a"] * 6), "expected at least two classes, found a alone"),
        (PLAIN * 1j, "expected whole numbers or text, found complex128"),
        (np.array(["a", "b", ""])[PLAIN], "labels: expected names of 1 to"),
        (np.array(["1", "01", "2"])[PLAIN], "expected different numbers, found classes 01 and 1"),
        (np.array(["a", 1, 2], dtype=object)[PLAIN], "expected text, found int '1' in row 1"),
        (np.array([[1, 2]] * 6, dtype=object), r"one for each of 6 images, found shape \(6, 2\)"),
    ],
)
def test_labels_that_are_not_plain_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        classes_of(values)


@given(st.lists(st.integers(0, 2**62), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_any_numbers_keep_their_order(values):
    numbers, names, _ = labels.classes_of("x", np.array(values), len(values), None)
    assert [int(names[number]) for number in numbers] == values
    assert set(numbers) == set(range(len(set(values))))
