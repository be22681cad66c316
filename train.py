"""Train from a config: `python train.py --config configs/demo.py --workdir runs/demo`."""

from absl import flags

from aia_jax.cli import flags as cli

if __name__ == "__main__":
    cli.define_flags(
        """Train what a config describes; run again with the same workdir to continue.

        python train.py --config configs/demo.py --workdir runs/demo
        python train.py --config configs/corel5k.py --workdir runs/corel5k --config.data.root=datasets

        Every field of the config can be set: --config.batch_size=64 --config.loss.name=focal
        Several hosts: the same command on each, with --distributed=auto (or an address); several GPUs: --xla_preset.
        Start from ImageNet weights: --config.init_backbone=FILE, from a whole model: --config.init_from=FILE|WORKDIR
        """,
        workdir="Folder of the run: checkpoints, records, pictures.",
    )
    cli.define_device_flags()
    cli.require("workdir", "runs/demo")
    from pathlib import Path

    from aia_jax.cli.train import train

    cli.run(lambda config: train(config, Path(flags.FLAGS.workdir)))
