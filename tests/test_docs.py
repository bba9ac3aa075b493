"""The README and docs/: commands compose, links lead somewhere, and every block of docs/extend.md runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lenet.config import compose_config, compose_settings
from tests.commands import PROJECT, Commands
from tests.conftest import Finished

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
EXTEND = PROJECT / "docs" / "extend.md"
CHEAP = {"data": "synthetic", "data.train_size": 2000, "data.val_size": 500, "data.test_size": 500}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands_on(page: Path, program: str) -> Iterator[list[str]]:
    """The arguments of each `python PROGRAM` in the page's blocks and in its running text."""
    text = page.read_text().replace("\\\n", " ")
    shell = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*shell, *re.findall(r"`(python [^`]*)`", text)]:
        command = re.search(rf"\b{program}\b(.*)", line)
        if command and "…" not in line:
            yield [word for word in shlex.split(command[1], comments=True) if not word.startswith("-")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("page", [page for page in PAGES if page != EXTEND], ids=lambda page: page.name)
def test_commands_compose(page: Path) -> None:
    for words in commands_on(page, "train.py"):
        grid = [re.sub(r"=([^\[{]*?),.*", r"=\1", word) for word in words]  # of a sweep, the first job
        compose_settings(*(word for word in grid if not word.startswith("sweep.resume=")))
    for words in commands_on(page, "scripts/tune.py"):
        compose_config("search", words)


def test_each_script_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for script in (PROJECT / "scripts").glob("*.py"):
        assert script.name in text


def test_help_and_readme_name_every_choice() -> None:
    """The groups of conf/ with their choices, the default first, on one screen."""
    conf = PROJECT / "conf"
    template = OmegaConf.load(conf / "hydra" / "help" / "lenet.yaml").template
    parts: Any = OmegaConf.to_container(OmegaConf.load(conf / "train.yaml"), resolve=False)
    defaults = {key: choice for part in parts["defaults"] if part != "_self_" for key, choice in part.items()}
    assert len(template.splitlines()) <= 60
    assert max(map(len, template.splitlines())) <= 110
    for folder in conf.iterdir():
        if folder.is_dir() and folder.name not in ("tune", "recipe", "hydra"):
            line = re.search(rf"^ +{folder.name} +([\w|]+)", template, re.MULTILINE)
            row = re.search(rf"^\| `{folder.name}` \| (.*?) \|", PAGES[0].read_text(), re.MULTILINE)
            assert line, folder.name
            assert row, folder.name
            choices = {file.stem for file in folder.glob("*.yaml")}
            assert set(line[1].split("|")) == choices
            assert set(re.findall(r"`(\w+)`", row[1])) == choices
            assert defaults[folder.name] in (None, line[1].split("|")[0])


def test_python_on_the_other_pages_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Finished
) -> None:
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for code in blocks(page, "python") if page != EXTEND else ():
            small = code.replace("FashionMNIST()", "Synthetic(train_size=2000, val_size=500)")
            small = small.replace("outputs/DATE/TIME", str(finished_run.folder))
            exec("from lenet import Synthetic\n" + small, {})  # noqa: S102


@pytest.fixture(scope="module")
def own_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of docs/extend.md."""
    folder = tmp_path_factory.mktemp("own_parts")
    for block in [*blocks(EXTEND, "python"), *blocks(EXTEND, "yaml")]:
        file = folder / block.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block)
    return folder


COMMANDS = [words for words in commands_on(EXTEND, "train.py") if words != ["optimizer.lr=0.5"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_extend_trains(words: list[str], own_parts: Path, commands: Commands, tmp_path: Path) -> None:
    data = [] if any(word.startswith("data") for word in words) else [f"{key}={value}" for key, value in CHEAP.items()]
    small = [*words, *data, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    done = commands.run("train.py", *small, f"--config-dir={own_parts / 'conf'}", cwd=own_parts)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").exists()
