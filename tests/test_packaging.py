"""What is installed is what is here, and what is declared is what is documented."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
PACKAGE_DATA = PYPROJECT["tool"]["setuptools"]["package-data"]
FOLDERS = sorted({package.partition(".")[0] for package in PACKAGES})


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[\w.-]+", requirement)[0] for requirement in requirements]


def folder(package: str) -> Path:
    return ROOT / package.replace(".", "/")


def test_transformers_does_not_take_our_kernels_for_its_own():
    from transformers.utils.import_utils import is_kernels_available

    import kernels

    assert Path(kernels.__file__).parent == ROOT / "kernels"  # ours is the one that transformers finds
    assert is_kernels_available() is False


def test_the_version_stays_below_what_any_supported_transformers_wants_of_kernels():
    # 0.9.0 in transformers 5.0.0, 0.18.2 in 5.23.0
    assert tuple(map(int, PROJECT["version"].split("."))) < (0, 9)


def test_every_listed_package_has_an_init():
    assert [package for package in PACKAGES if not (folder(package) / "__init__.py").is_file()] == []


def test_every_folder_with_code_is_a_listed_package():
    with_code = {file.parent.relative_to(ROOT) for top in FOLDERS for file in (ROOT / top).rglob("*.py")}
    assert {".".join(path.parts) for path in with_code} == set(PACKAGES)


def test_every_toml_file_of_a_package_is_installed_with_it():
    there = {file for top in FOLDERS for file in (ROOT / top).rglob("*.toml")}
    shipped = {file for package, globs in PACKAGE_DATA.items() for glob in globs for file in folder(package).glob(glob)}
    measured = set((ROOT / "bench" / "results").rglob("*.toml"))  # recipes of recorded runs stay in the repository
    assert there - shipped - measured == set()


def test_the_runtime_dependencies_are_the_documented_ones():
    documented = ["torch", "triton", "transformers", "safetensors", "tokenizers", "sentencepiece", "numpy"]
    assert names(PROJECT["dependencies"]) == documented


def test_the_extras_are_the_documented_ones():
    assert set(PROJECT["optional-dependencies"]) == {"plots", "parquet", "tensorboard", "peers", "serve", "test"}
    assert names(PROJECT["optional-dependencies"]["plots"]) == ["matplotlib"]
    assert names(PROJECT["optional-dependencies"]["parquet"]) == ["pyarrow"]
    assert names(PROJECT["optional-dependencies"]["serve"]) == ["uvicorn"]


def test_no_folder_of_tests_is_a_package():
    """tests/patarm_core with an __init__.py would be imported as `patarm_core`."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
