"""Checks the versions of installed packages, and names the commands that install packages."""

import importlib
import re
import shlex
import types
from importlib import metadata
from pathlib import Path

from aia_jax.utils.errors import InputError


def install_command(extra: str, *only: str) -> str:
    """Returns the pip command that installs the packages of an extra, such as `pip install 'onnxruntime>=1.20'`.

    The command names the packages, not the extra: it works for copies from an index, from a wheel and from a checkout.

    Args:
        extra: the extra.
        only: packages of the extra, if not all of them are needed.
    """
    names = [line.partition(";")[0].strip() for line in _requirements() if re.search(rf"extra == .{extra}\b", line)]
    names = [name for name in names if not only or re.match(r"[\w.-]+", name)[0] in only]
    return f"pip install {shlex.join(names)}" if names else f"pip install -e '.[{extra}]' in the checkout"


def import_with_extra(module: str, use: str, extra: str, *only: str) -> types.ModuleType:
    """Imports a module that needs packages of an extra. Raises InputError if one is missing or they do not fit."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{use} needs more packages ({error}): {install_command(extra, *only)}") from None
    except RuntimeError as error:  # torchvision registers operators in torch
        problem = f"the installed torch and torchvision do not fit each other ({error})"
        raise InputError(f"{problem}; install both from the same index, such as that of PyTorch for CPUs") from None


def packaged_file(package: str, ending: str, content: str, command: str) -> Path:
    """Finds a data file of an installed package without importing the package.

    Args:
        package: name of the package.
        ending: end of the file's path in the package, such as ".pth" or "model/config.json".
        content: what the file holds, for messages.
        command: the command that installs the package.

    Raises:
        InputError: the package is not installed, or it does not have the file.
    """
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise InputError(f"{content} are not installed: {command}") from None
    for file in distribution.files or ():
        if file.as_posix().endswith(ending) and (path := Path(distribution.locate_file(file))).is_file():
            return path
    raise InputError(f"the installed package {package} lacks {content}, *{ending}: {command} --force-reinstall")


def check_versions() -> None:
    """Raises InputError if a package is missing, or older or newer than this project needs."""
    problems = []
    for line in _requirements():
        needed, _, marker = line.partition(";")
        least, most = re.search(r">=([\d.]+)", needed), re.search(r"<([\d.]+)", needed)
        if not marker and least:
            name = re.match(r"[\w.-]+", needed)[0]
            try:
                installed = metadata.version(name)
            except metadata.PackageNotFoundError:
                installed = "none"
            if version_numbers(installed) < version_numbers(least[1]):
                problems.append((f"{name} {least[1]} or newer (installed: {installed})", needed))
            elif most and version_numbers(installed) >= version_numbers(most[1]):
                problems.append((f"{name} below {most[1]} (installed: {installed})", needed))
    if problems:
        texts, packages = zip(*problems, strict=True)
        raise InputError(f"aia_jax needs {', '.join(texts)}: pip install --upgrade {shlex.join(packages)}")


def _requirements() -> list[str]:
    try:
        return metadata.requires("aia_jax") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return []


def version_numbers(version: str) -> list[int]:
    """Returns the first three numbers of a version, such as [0, 11, 2]."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    return numbers + [0] * (3 - len(numbers))
