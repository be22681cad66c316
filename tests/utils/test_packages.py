from importlib import metadata

import pytest

from aia_jax.cli.main import main
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import check_versions, install_command


@pytest.fixture
def requirements(monkeypatch):
    """The requirements of a fictional project, of which `old` is installed in version 1.9.3."""
    lines = [
        "old>=1.10,<2",
        "new>=0.5",
        'tool>=2; extra == "draw"',
        "other ; sys_platform == 'linux' and extra == 'draw'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    monkeypatch.setattr(metadata, "version", {"old": "1.9.3", "new": "0.12.0.1"}.__getitem__)
    return lines


def test_an_old_package_is_named_with_the_command_that_replaces_it(requirements, capsys):
    assert main(["results"]) == 2
    message = "error: aia_jax needs old 1.10 or newer (installed: 1.9.3): pip install --upgrade 'old>=1.10,<2'\n"
    assert capsys.readouterr().err == message
    requirements[:2] = ["old<1.9,>=1.8", "new<0.13,>=0.5"]
    with pytest.raises(InputError, match=r"needs old below 1.9 \(installed: 1.9.3\): pip .* 'old<1.9,>=1.8'"):
        check_versions()
    del requirements[0]
    check_versions()


def test_the_packages_of_an_extra_are_named(requirements):
    assert install_command("draw") == "pip install 'tool>=2' other"
    assert install_command("draw", "tool") == "pip install 'tool>=2'"
    assert install_command("paint") == "pip install -e '.[paint]' in the checkout"
