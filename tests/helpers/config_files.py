"""Config files of configs that a test made."""

from pathlib import Path

from ml_collections import ConfigDict


def write_config(path: Path, config: ConfigDict) -> Path:
    """Writes a config file whose `get_config` returns the demo's config with the values of `config`."""
    path.write_text(
        "from configs.demo import get_config as demo\n\n"
        f"def get_config():\n    config = demo()\n    config.update({config.to_dict()!r})\n    return config\n"
    )
    return path
