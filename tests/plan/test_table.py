from datetime import datetime

import torch

from pipeline.plan import table
from pipeline.plan.table import Cost
from pipeline.plan.work import Stage

CPU = torch.device("cpu")
NOW = datetime(2026, 3, 2, 23, 0)


def cost(name, seconds, text="", **sizes):
    stage = Stage(name=name, text=text, **sizes)
    return Cost(stage=stage, seconds=seconds, memory=10**9, gpu_memory=2 * 10**9)


COSTS = [
    cost("prepare", 4.4, "1,797 images", disk=6 * 10**6),
    cost("train_clean", 3725, "1,500 images x 8 epochs", disk=94 * 10**6, extra_disk=10**9),
]


def test_the_table_has_a_row_for_each_stage_and_a_total():
    assert table.table(COSTS, CPU, NOW).splitlines() == [
        "stage        work                           time    disk    memory  GPU",
        "prepare      1,797 images                    4 s    6 MB  1,000 MB    -",
        "train_clean  1,500 images x 8 epochs  1 h 02 min   94 MB  1,000 MB    -",
        "total                                 1 h 02 min  100 MB  1,000 MB    -",
        "begun now, it would end on Tuesday 03 March at 00:02",
        "while a training runs, unfinished work needs up to 1,000 MB more disk",
    ]


def test_a_gpu_has_its_own_column():
    lines = table.table(COSTS, torch.device("cuda"), NOW).splitlines()
    assert [line.endswith("2,000 MB") for line in lines[:4]] == [False, True, True, True]


def test_sizes_are_words():
    assert [table.size(n) for n in (0, 5, 94_000_000, 2 * 10**10)] == [
        "-",
        "<1 MB",
        "94 MB",
        "20.0 GB",
    ]


def test_a_run_of_less_than_a_day_needs_no_advice(settings):
    assert list(table.advice([cost("train_clean", 86400)], settings, CPU)) == []


def test_a_run_of_more_than_a_day_gets_advice(settings):
    costs = [cost("train_clean", 86400), cost("evaluate@clean", 86400), cost("prepare", 9)]
    assert list(table.advice(costs, settings, CPU)) == [
        "this is 2.0 days; what would shorten it:",
        "  a GPU: PIPELINE_DEVICE=auto uses it if torch sees one",
        "  model.architecture: resnet18",
        "  fewer epochs in train_clean (50% of the time is such work)",
        "  fewer images and iterations in evaluate.n_eval, ensemble, curves and grid, for "
        "evaluate@clean (50% of the time is such work)",
    ]


def test_advice_names_no_gpu_on_a_gpu(settings):
    model = settings.model.model_copy(update={"architecture": "resnet18"})
    small = settings.model_copy(update={"model": model})
    costs = [cost("generate@clean-pgd", 10**6)]
    lines = list(table.advice(costs, small, torch.device("cuda")))
    assert len(lines) == 2
    assert lines[1].startswith("  fewer steps of the attack of generate@clean-pgd (100%")
