"""The channel statistics of the data sets, which normalise images."""

from pathlib import Path

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json

# Mean and standard deviation of the channels (red, green, blue) on the scale 0..1. The values for photos are from the
# reference implementation. The values for scenes were measured on 2,000 scenes of seed 0 at 96 px.
CHANNEL_STATS = {
    "corel5k": ((0.3928, 0.4079, 0.3531), (0.2559, 0.2436, 0.2544)),
    "espgame": ((0.5377, 0.5087, 0.4845), (0.3244, 0.3181, 0.3254)),
    "iaprtc12": ((0.4901, 0.4739, 0.4489), (0.2557, 0.2543, 0.2769)),
    "vg500": ((0.4697, 0.4518, 0.4163), (0.2727, 0.2684, 0.2855)),
    "scenes": ((0.4533, 0.4700, 0.3761), (0.2589, 0.2179, 0.2147)),
}
CUSTOM_STATS = "channel_stats.json"  # CHANNEL_STATS of a user's own photos: a file beside the annotations
ChannelStats = tuple[tuple[float, ...], tuple[float, ...]]


def read_channel_stats(root: str | Path) -> ChannelStats:
    """Reads the mean and standard deviation of each channel of a user's photos from <root>/channel_stats.json.

    Raises:
        InputError: the file is absent or malformed.
    """
    path = Path(root) / CUSTOM_STATS
    if not path.is_file():
        raise InputError(f"{path} does not exist; config.data.root must be the folder that aia import-labels wrote")
    document = read_json(path, '{"mean": [r, g, b], "std": [r, g, b]}')
    stats = []
    for field, least in (("mean", 0.0), ("std", 1e-6)):
        values = document.get(field) if isinstance(document, dict) else None
        numbers = values if isinstance(values, list) and len(values) == 3 else [None]
        if not all(isinstance(number, float | int) and least <= number <= 1 for number in numbers):
            raise InputError(f"{path}: field {field!r} must be three numbers on the scale 0..1, found {values!r:.60}")
        stats.append(tuple(map(float, numbers)))
    return stats[0], stats[1]
