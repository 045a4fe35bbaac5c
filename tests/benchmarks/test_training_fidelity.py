from benchmarks import training_fidelity


def test_the_table_compares_means_over_seeds():
    found = {
        "fp32": [[10.0, 20.0], [12.0, 24.0], [14.0, 28.0]],
        "bf16": [[11.0, 21.0], [13.0, 25.0], [15.0, 29.0]],
    }
    first, second = training_fidelity.table(found)
    assert first == {
        "epoch": 1,
        "fp32, %": 12.0,
        "bf16, %": 13.0,
        "difference, points": 1.0,
        "noise, points": 1.63,  # the root of 4/3 + 4/3
    }
    assert second["difference, points"] == 1.0
    assert second["noise, points"] == 3.27
