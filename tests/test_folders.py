from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lenet import folders
from lenet.errors import UserError


def test_a_default_folder_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    for name in ("run", "run-2", "run-3"):
        config = OmegaConf.create({"hydra": {"run": {"dir": f"{tmp_path}/run"}, "overrides": {"hydra": []}}})
        assert folders.claim(config, "hydra.run.dir") == tmp_path / name
        assert config.hydra.run.dir == str(tmp_path / name)


def test_a_chosen_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    chosen = f"hydra.run.dir={tmp_path}"
    config = OmegaConf.create({"hydra": {"run": {"dir": str(tmp_path)}, "overrides": {"hydra": [chosen]}}})
    assert folders.claim(config, "hydra.run.dir") == tmp_path
    (tmp_path / "precious").touch()
    with pytest.raises(UserError, match=f"{chosen}: .*name a new one"):
        folders.claim(config, "hydra.run.dir")


def test_of_two_runs_with_the_same_chosen_folder_the_second_is_refused(tmp_path: Path) -> None:
    chosen = f"hydra.run.dir={tmp_path}/run"
    config = OmegaConf.create({"hydra": {"run": {"dir": f"{tmp_path}/run"}, "overrides": {"hydra": [chosen]}}})
    folders.claim(config, "hydra.run.dir")
    with pytest.raises(UserError, match=r"hydra\.run\.dir"):
        folders.claim(config, "hydra.run.dir")
