"""Runs one of two processes: `python stream_worker.py FOLDER PORT PROCESS_ID` streams the batches of a training split.

FOLDER is `config.data.root`. Writes this process's rows of each batch, and the sum of each global row that its four
devices have, to `<FOLDER>/<PROCESS_ID>.npz`.
"""

import itertools
import sys
from pathlib import Path

import jax
import numpy as np

from aia_jax.cli.devices import join_hosts
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from tests.helpers.untrained import annotator_config

BATCHES = 3  # of 16 images, over two epochs of a training part of 21 images


def stream_config(root: Path, placement: str):
    """Returns the config of a small annotator on Corel-5k in the folder `root`."""
    fields = {"data.name": "corel5k", "data.root": str(root), "data.placement": placement, "data.num_workers": 2}
    return annotator_config(**fields, **{"batch_size": 16, "data.image_size": 16, "eval.split": "test"})


def main(folder: Path, port: str, process: int) -> None:
    join_hosts(f"127.0.0.1:{port}", 2, process, timeout_s=60)
    assert (jax.device_count(), jax.local_device_count()) == (8, 4)
    batches = list(itertools.islice(AnnotationTask(stream_config(folder, "stream")).train_batches(0), BATCHES))
    mesh = sharding.data_mesh()
    shards = [sharding.put_batch(batch, mesh)["image"].addressable_shards for batch in batches]
    rows = [[(shard.index[0].start, int(np.sum(shard.data, dtype=np.int64))) for shard in some] for some in shards]
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    np.savez(folder / f"{process}.npz", shards=np.array(rows), **stacked)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
