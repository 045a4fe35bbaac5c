from pipeline.base.words import counted


def test_one_is_not_many():
    found = [counted(n, "path") for n in (0, 1, 2, 5712)]
    assert found == ["0 paths", "1 path", "2 paths", "5,712 paths"]
