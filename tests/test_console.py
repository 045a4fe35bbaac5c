import pytest

from pipeline import console
from pipeline.errors import InputError


def test_a_command_says_what_it_did_and_how_long_it_took(capsys):
    console.run(lambda: "done")
    assert capsys.readouterr().out.startswith("done (0.")


def test_a_users_mistake_is_one_line_and_exit_code_1(capsys):
    def fail():
        raise InputError("x: expected 1, found 2")

    with pytest.raises(SystemExit) as caught:
        console.run(fail)
    assert caught.value.code == "error: x: expected 1, found 2"  # Python prints a string to standard error and exits with 1


def test_an_interruption_says_how_to_go_on(capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        console.run(interrupt)
    assert caught.value.code == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_progress_is_quiet_without_a_terminal(capsys):
    with console.progress(3, "work", "items") as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")
