import sys

from pipeline.networks import torchvision_models


def test_a_module_is_imported_once_a_function_of_it_is_called(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with torchvision_models._later("colorsys"):
        from colorsys import rgb_to_hsv
    assert "colorsys" not in sys.modules
    assert rgb_to_hsv(1.0, 1.0, 1.0) == (0.0, 0.0, 1.0)
    assert "colorsys" in sys.modules


def test_a_module_that_is_there_stays():
    before = sys.modules["sys"]
    with torchvision_models._later("sys"):
        assert sys.modules["sys"] is before
    assert sys.modules["sys"] is before
