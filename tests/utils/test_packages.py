from importlib import metadata

import pytest

from aia_jax.cli.main import main
from aia_jax.utils.errors import InputError
from aia_jax.utils.packages import check_versions, import_with_extra, install_command, packaged_file


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
    with pytest.raises(InputError, match=r"drawing needs more packages \(.*no_such.*\): pip install 'tool>=2' other"):
        import_with_extra("aia_jax.no_such", "drawing", "draw")
    assert install_command("paint") == "pip install -e '.[paint]' in the checkout"


def test_a_torchvision_of_another_torch_is_not_a_missing_package(monkeypatch, tmp_path):
    (tmp_path / "drawn.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"torch and torchvision do not fit each other \(operator .*same index"):
        import_with_extra("drawn", "drawing", "draw")


def test_a_file_of_a_package_is_found_without_an_import():
    assert packaged_file("tqdm", "tqdm/std.py", "a bar", "pip install tqdm").name == "std.py"
    with pytest.raises(InputError, match=r"^bars are not installed: pip install no-such-package$"):
        packaged_file("no-such-package", ".bar", "bars", "pip install no-such-package")
    command = "pip install tqdm"
    with pytest.raises(InputError, match=rf"package tqdm lacks bars, \*\.bar: {command} --force-reinstall$"):
        packaged_file("tqdm", ".bar", "bars", command)
