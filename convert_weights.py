"""Convert a PyTorch file: `python convert_weights.py --config C --input FILE --output DIR`."""

from absl import flags

from aia_jax.cli import flags as cli

if __name__ == "__main__":
    cli.define_flags(
        """PyTorch weights to a checkpoint of this project, and back.

        python convert_weights.py --config configs/corel5k.py --input Annotator_Corel-5k.pth --output runs/authors
        ... --verify    also runs images, for SGRAF features and captions, through PyTorch and compares every stage
        python convert_weights.py --config configs/corel5k.py --input runs/corel5k --output mine.pth --reverse

        What a file is (system A or B, SGRAF, or an ImageNet model; timm <= 0.6, MIIL or timm >= 0.9) is told by its
        names, and of SGRAF by the options in it.
        """,
        input="PyTorch or safetensors file; with --reverse the folder of a run.",
        output="Folder to write the checkpoint to; with --reverse the file, .pth or .safetensors.",
        images="With --verify, of annotation: folder of images to compare on; the default are drawn scenes.",
        split="With --verify, of annotation: also score this split (train, validation or test) in both frameworks.",
    )
    cli.require("input", "Annotator_Corel-5k.pth")
    cli.require("output", "runs/authors")
    flags.DEFINE_bool("reverse", False, "Write a PyTorch file: timm's names (>= 0.9), or SGRAF's checkpoint.")
    flags.DEFINE_bool("backbone_only", False, "With --reverse: the backbone as timm's model with num_classes=0.")
    flags.DEFINE_bool("verify", False, "Compare every stage with PyTorch; exit code 1 past --tolerance.")
    flags.DEFINE_float("tolerance", 1e-5, "With --verify: largest error, relative to a stage's largest value.")
    from pathlib import Path

    from aia_jax.cli.convert import check_output, convert, convert_back
    from aia_jax.utils.errors import InputError

    def command(config):
        given = flags.FLAGS
        source, output = Path(given.input), Path(given.output)
        if given.reverse and (given.verify or given.images or given.split):
            raise InputError("--reverse goes without --verify, --images and --split")
        if given.reverse:
            convert_back(config, source, output, backbone_only=given.backbone_only)
            return 0
        if given.backbone_only:
            raise InputError("--backbone_only goes with --reverse; a file of a backbone is recognised as one")
        if not given.verify and (given.images or given.split):
            raise InputError("--images and --split go with --verify")
        check_output(output)
        passed = True
        if given.verify:
            from aia_jax.cli.verify import verify

            passed = verify(config, source, images=given.images, split=given.split, tolerance=given.tolerance)
        convert(config, source, output)
        return 0 if passed else 1

    cli.run(command)
