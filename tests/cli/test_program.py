"""The program: every command by one name, studies and reports as well."""

from hem.__main__ import main
from hem.cli.help import LISTINGS
from hem.cli.listings import KEYS


def test_studies_and_reports(capsys, tmp_path, monkeypatch):
    """A study that ships goes by its name; an option of its runs is none of the study's that was misspelt."""
    monkeypatch.chdir(tmp_path)
    assert main(["study", "folder", "--dry-run", "--data.root", "my_images"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("--data.root my_images") == 12, "six trainings, six tests"
    assert main(["study", "folder", "--dry-run", "--job", "2"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["study", "no_such_study"]) == 2
    assert "quick" in capsys.readouterr().err
    assert main(["report", "runs"]) == 1
    assert "there is no runs" in capsys.readouterr().err
    assert main(["fitt"]) == 2
    assert "did you mean 'fit'" in capsys.readouterr().err


def test_what_can_be_listed_is_in_the_help():
    assert {"configs", *KEYS} == set(LISTINGS)
