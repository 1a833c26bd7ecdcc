"""What an installation brings: the extras, and the core without torch."""

import json
import re
import subprocess
import sys

from conftest import PATIENCE, REPOSITORY, missing_requirements


def extras_of_setup() -> dict[str, list[str]]:
    """The extras as setup.py gives them."""
    program = (
        "import json, setuptools; setuptools.setup = lambda **given: print(json.dumps(given['extras_require']));"
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {'__file__': 'setup.py', '__name__': '__main__'})"
    )

    return json.loads(
        subprocess.run(
            [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout
    )


def test_core_requirements_are_those_of_settings():
    done = subprocess.run([sys.executable, REPOSITORY / ".ci" / "core", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^[\w-]+", (REPOSITORY / "requirements-core.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert "numpy" in names and not {"torch", "torchvision", "fastai", "captum", "timm"} & set(names)


def test_all_holds_every_extra_and_dev_is_light():
    extras = extras_of_setup()
    assert all(set(requirements) <= set(extras["all"]) for extra, requirements in extras.items() if extra != "dev")
    dev = {re.match(r"[\w-]+", requirement)[0] for requirement in extras["dev"]}
    assert {"nbdev", "pytest"} <= dev and len(dev) <= 15
    assert not {"ray", "tensorflow", "gradio", "onnxruntime", "keras", "moto", "accelerate"} & dev


def test_a_missing_requirement_is_named(monkeypatch):
    from importlib import metadata

    monkeypatch.setattr(
        metadata, "requires", lambda name: ["numpy>=1", "no-such-thing>=2; extra == 'all'", "nothing; extra == 'other'"]
    )
    assert missing_requirements() == ["no-such-thing>=2"]


def test_the_core_runs_without_torch():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", REPOSITORY / "tests" / "core_alone.py"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "modules without torch" in done.stdout
