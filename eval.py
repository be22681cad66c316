"""Evaluate a run: `python eval.py --config configs/demo.py --workdir runs/demo`."""

from absl import flags

from aia_jax.commands import cli

if __name__ == "__main__":
    cli.define_flags(
        """Score a split with a run's best checkpoint: metrics.json, scores.npz, predictions.png, attention.png.

        python eval.py --config configs/demo.py --workdir runs/demo
        python eval.py --config configs/demo.py --workdir runs/demo --split train --output /tmp/demo-train
        """
    )
    flags.DEFINE_string("output", None, "Folder for the results; the default is <workdir>/evaluation.")
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split to score, never augmented.")
    from pathlib import Path

    from aia_jax.commands.evaluate import evaluate

    def command(config, workdir):
        output = flags.FLAGS.output or workdir / "evaluation"
        evaluate(config, workdir, Path(output), split=flags.FLAGS.split)

    cli.run(command)
