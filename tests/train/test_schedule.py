import pytest

from pipeline.train import schedule


def test_learning_rate_schedules(recipe):
    cosine = [schedule.learning_rate(epoch, recipe) for epoch in (0, 0.5, 1, 2.5, 4)]
    assert cosine == pytest.approx([0, 0.5, 1, 0.5, 0])
    constant = recipe.model_copy(update={"schedule": "constant", "warmup_epochs": 0.0})
    assert {schedule.learning_rate(epoch, constant) for epoch in (0, 1, 4)} == {1.0}
