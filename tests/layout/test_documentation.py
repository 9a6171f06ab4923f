"""What the pages say is there: commands and options by the commands' own parsers, files, names, links."""

from __future__ import annotations

import re
from functools import cache

import pytest
import tyro
from documented import ROOT, Block, blocks, pages, prose

from components.data.benchmarks.catalogue import BENCHMARKS
from components.data.generated import GENERATED_STREAMS
from components.data.suites.catalogue import SUITES
from components.methods import METHODS
from pipelines.cli import SHORT, Command, parse
from pipelines.completion import OPTIONS
from pipelines.presets import DEFAULT_PRESET, PRESETS, preset

PAGES = pages()
# Of `ray start`, `ray job submit`, pytest, ruff and vLLM.
OF_OTHER_PROGRAMS = {
    "--num-gpus",
    "--max-lora-rank",
    "--working-dir",
    "--entrypoint-num-cpus",
    "--submission-id",
    "--object-store-memory",
    "--nodes",  # of clusters/local.sh, with the next three
    "--groups",
    "--shared",
    "--plain",
    "--runtime-env",
    "--method-contract",
    "--more",  # of tests/benchmarks/run.py
    "--check",
    "--find-links",  # of pip
    "--every-family",  # of pytest here, with the next one
    "--record-families",
    "--cpu",  # of tests/gpu/prove.py, with the next three
    "--only",
    "--pack",
    "--seconds",
}
OF_ALL = {"--help", "--help-all", "--version", "--method"}
FORMER = {"--against"}  # works until the next release


@cache
def read(name: str, *arguments: str) -> None:
    """By the command's own parser, which ends the program where it does not understand."""
    kind = OPTIONS[name]
    if issubclass(kind, Command):
        parse(arguments, program=name, description="", kind=kind)
    else:
        tyro.cli(kind, args=arguments)


@cache
def options() -> set[str]:
    """Every option of every command, and of every method, which are the same in all commands."""
    run = preset(DEFAULT_PRESET)
    runs = [Command(run=run.with_method(method)) for method in METHODS]
    runs += [kind(run=run) for kind in OPTIONS.values() if issubclass(kind, Command)]
    parsers = [tyro.extras.get_parser(type(default), default=default) for default in runs]
    parsers += [tyro.extras.get_parser(kind) for kind in OPTIONS.values() if not issubclass(kind, Command)]
    return {option for parser in parsers for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize(
    "block", [x for x in blocks() if not x.title.startswith("Tested")], ids=lambda block: block.page
)
def test_every_command_is_understood(block: Block) -> None:
    for name, *words in block.commands():
        if words and words[0].endswith(".json") and not (ROOT / words[0]).is_file():
            words[0] = DEFAULT_PRESET  # a file that an earlier command leaves
        read(name, *words)


@pytest.mark.parametrize("block", [each for each in blocks() if each.title], ids=lambda block: block.page)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    verb, _, rest = block.title.partition(" ")
    assert verb == "Needs" or (block.title.startswith("Tested by") and (ROOT / rest.removeprefix("by ")).is_file())


@pytest.mark.parametrize("page", PAGES)
def test_every_option_exists(page: str) -> None:
    named = set(re.findall(r"`[^`\n]*?(--[a-z][a-z0-9.-]*[a-z0-9])", prose(PAGES[page])))
    assert (
        named
        - options()
        - SHORT.keys()
        - OF_ALL
        - OF_OTHER_PROGRAMS
        - FORMER
        - {f"--no-{option[2:]}" for option in options()}
        == set()
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    named = re.findall(r"`((?:components|pipelines|tests|docs|clusters)/[\w./-]+)`", PAGES[page])
    assert [path for path in named if not (ROOT / path).exists() and "NAME" not in path] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """mkdocs looks at the links of its own pages; here the files at the root are looked at too."""
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]) if "://" not in link]
    made = {"options.md", "contributing.md", "changelog.md"}  # by docs/hooks.py
    assert [x for x in links if not ((ROOT / page).parent / x).exists() and x.rsplit("/", 1)[-1] not in made] == []


@pytest.mark.parametrize("name", [*PRESETS, *GENERATED_STREAMS, *METHODS, *SUITES])
def test_every_name_is_on_a_page(name: str) -> None:
    assert any(f"`{name}`" in text for text in PAGES.values())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_on_a_page(name: str) -> None:
    variants = (
        r"coin(-diverse|-10type)?(-alphabetical|-reversed)?(-full)?|coast-capability-table-order"  # one pattern there
    )
    assert re.fullmatch(variants, name) or any(f"`{name}`" in text for text in PAGES.values())


def test_no_placeholder_is_left() -> None:
    marks = r"\b[A-Z]+_PLACEHOLDER\b|\bTODO\b(?!`?s)|\bXXX\b"
    assert [page for page, text in PAGES.items() if re.search(marks, text)] == []


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
