import pytest
import torch

from pipeline import presets
from pipeline.plan.images import Images
from pipeline.plan.stages import Plan
from tests.conftest import ROOT


@pytest.fixture
def stages_of(monkeypatch):
    """The stages of a preset by name, on a CPU that does not multiply bfloat16."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    def found(name, n_images, n_val):
        images = Images(n_images=n_images, n_val=n_val, size=32, n_classes=10, origin="a test")
        plan = Plan(presets.settings(name), images, torch.device("cpu"))
        return {stage.name: stage for stage in plan.stages()}

    return found
