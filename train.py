"""Train from a config: `python train.py --config configs/demo.py --workdir runs/demo`."""

from aia_jax.commands import cli

if __name__ == "__main__":
    cli.define_flags(
        """Train what a config describes; run again with the same workdir to continue.

        python train.py --config configs/demo.py --workdir runs/demo
        python train.py --config configs/corel5k.py --workdir runs/corel5k --config.data.root=datasets

        Every field of the config can be set: --config.batch_size=64 --config.loss.name=focal
        """
    )
    from aia_jax.commands.train import train

    cli.run(train)
