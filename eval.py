"""Evaluate a run: `python eval.py --config configs/demo.py --workdir runs/demo`."""

import sys

from absl import flags

from aia_jax.cli import flags as cli

if __name__ == "__main__":
    cli.define_flags(
        """Score a split with a run's best checkpoint: metrics.json, scores or rankings, and pictures.

        python eval.py --config configs/demo.py --workdir runs/demo
        python eval.py --config configs/demo.py --workdir runs/demo --html
        python eval.py --config configs/demo.py --workdir runs/demo --split train --output /tmp/demo-train
        python eval.py --config configs/corel5k.py --weights Annotator_Corel-5k.pth --output /tmp/corel5k
        python eval.py --config configs/improved_loss.py:corel5k --workdir runs/b --thresholds mcc
        python eval.py --config configs/demo.py --workdir runs/demo --config.model.dtype=bfloat16
        python eval.py --config configs/sgraf.py:f30k --weights runs/sgr --weights runs/saf --output runs/sgraf

        config.model.dtype, that of the computation, may differ from the one in training; the weights are the same.
        """,
        workdir="Folder of the run to evaluate.",
        output="Folder for the results; the default is <workdir>/evaluation, with a folder as --weights likewise.",
        thresholds="Per-label thresholds beside config.eval.threshold: mcc (fitted on the training split over the "
        "published grid), exact (over all its scores), or a thresholds.json.",
    )
    cli.define_strings(
        "weights",
        "Instead of --workdir: a PyTorch file, or a folder that convert_weights.py or train.py wrote. Given again and "
        "again, of retrieval: the ensemble is scored too.",
    )
    cli.define_device_flags()
    flags.DEFINE_bool(
        "html",
        False,
        "Of annotation: report.html too, one page of all photos, the worst first, with true and predicted labels and "
        "what each looks at, the labels' numbers and precision-recall curves, and which are confused.",
    )
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["html"])
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split to score, never augmented.")
    from pathlib import Path

    from aia_jax.evaluation.evaluate import evaluate
    from aia_jax.utils.errors import InputError

    def command(config):
        workdir, weights, output, split, thresholds, html = (
            flags.FLAGS[name].value for name in ("workdir", "weights", "output", "split", "thresholds", "html")
        )
        if bool(workdir) == bool(weights):
            raise InputError("give --workdir, the folder of a run, or --weights, a file or folder")
        folder = workdir or (weights[0] if len(weights) == 1 and Path(weights[0]).is_dir() else None)
        if not output and not folder:
            raise InputError("--weights FILE needs --output, a folder for the results")
        evaluate(
            config,
            workdir and Path(workdir),
            Path(output) if output else Path(folder) / "evaluation",
            weights=weights or (),
            split=split,
            thresholds=thresholds or "",
            html=html,
        )

    cli.run(command)
