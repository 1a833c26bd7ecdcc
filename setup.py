"""Package metadata, read from settings.ini so that it is written down once."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
PARTS = (
    # for users
    "timm", "s3", "onnx", "openvino", "keras", "tensorflow", "litert", "distributed", "parquet", "ome-zarr",
    "bioio", "hub", "app", "neighbours", "maps", "cells",
    "docs", "benchmarks", "tests",  # for those who work on the library
)
# never part of all, for environments of their own: anndata holds pandas below 3, cellpose 3 holds NumPy below 2.1
APART = ("anndata", "cellpose")
extras = {extra: settings[f"{extra.replace('-', '_')}_requirements"].split() for extra in (*PARTS, *APART, "dev")}
# enough for a first change; the notebooks on data need these three
extras["dev"] += extras["timm"] + extras["parquet"] + extras["ome-zarr"]
extras["all"] = [requirement for part in PARTS for requirement in extras[part]]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license=settings["license"],
    keywords=settings["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
    ],
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=["protein_atlas", "protein_atlas.*"]),
    package_data={
        "protein_atlas": ["py.typed", "templates/*.jinja", "weights/*.safetensors", "weights/*.json"],
        "protein_atlas.data": ["label_sets.csv", "label_systems.csv"],
    },
    include_package_data=False,  # just the above
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": ["protein_atlas=protein_atlas._modidx:d"],
    },
)
