from pathlib import Path

import msgspec
import pytest

from tare.bench.errors import ImageError
from tare.bench.image import Recipe
from tare.bench.image.recipe import BASE_PACKAGES, CATALOGUE_PACKAGES, guest_version


def test_order_and_repetition_of_packages_do_not_matter() -> None:
    assert Recipe.of(["zstd", "acl"]).hash == Recipe.of(["acl", "zstd", "acl"]).hash != Recipe.of(["acl"]).hash


def test_every_image_has_what_the_harness_uses() -> None:
    assert set(BASE_PACKAGES) <= set(Recipe.of([]).packages)


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "trixie"},
        {"packages": ("fio",)},
        {"python_packages": ("pyperf==2.10.0",)},
        {"architecture": "arm64"},
        {"variant": "apt"},
        {"kernel_package": "linux-image-amd64"},
        {"guest_version": "0"},
        {"builder_version": 99},
    ],
)
def test_every_field_is_in_the_hash(change: dict[str, object]) -> None:
    recipe = Recipe.of(["sysbench"])
    assert msgspec.structs.replace(recipe, **change).hash != recipe.hash


@pytest.mark.parametrize("name", ["", "--hook-dir=/tmp", "fio,sysbench", "Fio", "fio sysbench", "x"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="cannot be the name"):
        Recipe.of([name])


def test_python_packages_are_told_from_debian_s_by_their_prefix() -> None:
    recipe = Recipe.of(["pypi:tabulate==0.9.0", "pypi:more-itertools==10.1", "acl"])
    assert recipe.python_packages == ("more-itertools==10.1", "tabulate==0.9.0")
    assert set(recipe.packages) == {"acl", *BASE_PACKAGES}


@pytest.mark.parametrize("name", ["pyperf", "pyperf>=2", "Pyperf==2.0", "--index-url==1", "pyperf==2 -r x", "==1", ""])
def test_a_python_package_without_its_version_is_refused(name: str) -> None:
    with pytest.raises(ImageError, match="with its version") as caught:
        Recipe.of([f"pypi:{name}"])
    assert "pypi:pyperf==2.10.0" in str(caught.value.remedy)


@pytest.mark.parametrize("asked", ["wrk", "pypi:pyperf==2.10.0"])
def test_one_of_the_catalogue_brings_all_of_it(asked: str) -> None:
    recipe = Recipe.of([asked])
    assert recipe == Recipe.of([*CATALOGUE_PACKAGES])
    assert len(recipe.packages) + len(recipe.python_packages) == len({*BASE_PACKAGES, *CATALOGUE_PACKAGES})
    assert not Recipe.of(["acl"]).python_packages


def test_the_guest_version_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "init.c").write_text("int main;")
    first = guest_version(tmp_path)
    assert guest_version(tmp_path) == first
    (tmp_path / "init.c").write_text("int main; ")
    second = guest_version(tmp_path)
    (tmp_path / "init.c").rename(tmp_path / "main.c")
    assert len({first, second, guest_version(tmp_path)}) == 3


def test_compiled_python_is_not_part_of_the_guest_version(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    first = guest_version(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/x.pyc").write_bytes(b"\0")
    assert guest_version(tmp_path) == first
