import dataclasses

import pytest
import torch

from pipeline.base.values import Spread
from pipeline.networks import resnet
from pipeline.plan import stages
from pipeline.plan.images import Images
from pipeline.plan.stages import Plan

# Passes of single images: trained, attacked, classified.
QUICKSTART = {
    "prepare": (0, 0, 0),
    "train_clean": (1500 * 8, 0, 297 * 8),
    "generate@clean-fgsm": (0, 1797, 1797),
    "generate@clean-pgd": (0, 1797 * 10, 1797),
    "finetune@robust": (3000 * 5, 0, 3 * 297 * 5),
    # FGSM and PGD of 10 steps score each epoch; both refreshed sets are classified at the end.
    "finetune@refreshed": (3000 * 5, 297 * 5 * 11, 297 * 5 * 3 + 2 * 1797),
    "export": (0, 0, 0),
}
# Batches of 83 clean, 45 FGSM and 128 PGD images: 542 full ones, and one of 14, 7 and 21.
REFRESHED = 45000 + 542 * (45 + 128) + 7 + 21
CIFAR10_CPU = {
    "train_clean": (45000 * 30, 0, 5000 * 30),
    "generate@clean-fgsm": (0, 50000, 50000),
    "generate@clean-pgd": (0, 50000 * 10, 50000),
    "finetune@robust": (90000 * 6, 0, 3 * 5000 * 6),
    "finetune@refreshed": (REFRESHED * 8, 500 * 8 * 11, 500 * 8 * 3 + 2 * 50000),
    "train_online@online": (45000 * 10, 500 * 10 * 11, 500 * 10 * 3),
}


@pytest.mark.parametrize(
    ("preset", "n_images", "n_val", "expected"),
    [("quickstart", 1797, 297, QUICKSTART), ("cifar10-cpu", 50000, 5000, CIFAR10_CPU)],
)
def test_every_stage_counts_its_images(stages_of, preset, n_images, n_val, expected):
    found = stages_of(preset, n_images, n_val)
    assert {
        name: tuple(found[name].images(kind) for kind in ("train", "attack", "classify"))
        for name in expected
    } == expected


def test_the_stages_are_those_of_the_pipeline(stages_of):
    assert list(stages_of("cifar10-cpu", 50000, 5000)) == [
        "prepare", "train_clean", "train_online@online", "generate@clean-fgsm",
        "generate@clean-pgd", "finetune@robust", "finetune@refreshed", "evaluate@clean",
        "evaluate@robust", "evaluate@refreshed", "evaluate@online", "export", "audit", "report",
    ]  # fmt: skip


def test_texts_name_images_epochs_and_steps(stages_of):
    found = stages_of("cifar10-cpu", 50000, 5000)
    texts = {name: stage.text for name, stage in found.items()}
    assert texts["train_clean"] == "45,000 images x 30 epochs"
    assert texts["generate@clean-pgd"] == "50,000 images x 10 steps"
    assert texts["generate@clean-fgsm"] == "50,000 images"
    assert texts["train_online@online"] == "45,000 images x 10 epochs x 10 steps"
    refreshed = f"{REFRESHED:,} images x 8 epochs, {REFRESHED - 45000:,} of them x 1 steps"
    assert texts["finetune@refreshed"] == refreshed


def test_equal_trainings_are_one_kind(stages_of, settings):
    found = stages_of("quickstart", 1797, 297)
    robust, refreshed = (found[f"finetune@{name}"].work[0].kind for name in ("robust", "refreshed"))
    assert robust != refreshed
    assert robust.recipe.epochs == settings.finetuned["robust"].epochs
    kinds = {work.kind for stage in found.values() for work in stage.work}
    assert len([kind for kind in kinds if kind.name == "train"]) == 3
    assert len([kind for kind in kinds if kind.name == "attack"]) == 2  # one gradient, and Square


def test_epochs_without_refreshing_are_plain(settings, monkeypatch):
    recipe = settings.finetuned["refreshed"]
    refresh = recipe.refresh.model_copy(update={"every": 3})
    changed = {"refreshed": recipe.model_copy(update={"refresh": refresh})}
    own = settings.model_copy(update={"finetuned": {**settings.finetuned, **changed}})
    images = Images(n_images=1797, n_val=297, size=32, n_classes=10, origin="a test")
    plan = Plan(own, images, torch.device("cpu"))
    (stage,) = (stage for stage in plan.stages() if stage.name == "finetune@refreshed")
    trained = [work for work in stage.work if work.kind.name == "train"]
    assert [work.images for work in trained] == [2 * 3000, 3 * 3000]
    assert trained[1].kind.recipe.refresh is None


def test_images_of_each_eps_are_batches_of_their_own(settings):
    spread = Spread.model_validate({"uniform": ["1/255", "8/255"]})
    pgd = settings.attacks["pgd"].model_copy(update={"eps": spread})
    own = settings.model_copy(update={"attacks": {"pgd": pgd}})
    images = Images(n_images=1797, n_val=297, size=32, n_classes=10, origin="a test")
    plan = Plan(own, images, torch.device("cpu"))
    stage = plan._generate("generate", "clean", "pgd")
    assert stage.work[0].batches == 10 * -(-1797 // 16)


def test_both_precisions_are_tried_where_bf16_is_fast_and_images_may_withstand(
    stages_of, monkeypatch
):
    monkeypatch.setattr(stages, "multiplies_bfloat16", lambda _: True)
    found = stages_of("cifar10-cpu", 50000, 5000)
    assert found["generate@clean-fgsm"].images("attack") == 50000 + 2 * 1024
    assert found["generate@clean-pgd"].images("attack") == 10 * (50000 + 1024)


def test_disk_counts_sets_models_and_working_copies(stages_of):
    found = stages_of("quickstart", 1797, 297)
    image = 3 * 32 * 32
    weights = sum(t.nbytes for t in resnet.stock("resnet50", 10).state_dict().values())
    assert found["prepare"].disk == found["generate@clean-pgd"].disk == 1797 * (image + 32)
    assert found["finetune@robust"].disk == weights
    assert found["finetune@robust"].extra_disk == 14 * weights
    refreshed = found["finetune@refreshed"]
    assert refreshed.disk == weights + 2 * 1797 * (image + 32)
    assert refreshed.extra_disk == 14 * weights + 3 * 3 * 1500 * image


def test_hardened_models_keep_more_images(stages_of, settings):
    assert stages.stays(settings, "clean") == stages.stays(settings, "robust") == 0.01
    assert stages.stays(settings, "refreshed") == 0.4
    found = stages_of("quickstart", 1797, 297)
    assert found["evaluate@clean"].work == found["evaluate@robust"].work
    more = found["evaluate@refreshed"].images("attack") - found["evaluate@clean"].images("attack")
    assert more > 10000


def test_a_stage_is_plain_data(stages_of):
    stage = stages_of("quickstart", 1797, 297)["prepare"]
    assert dataclasses.replace(stage) == stage
