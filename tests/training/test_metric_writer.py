import json

from aia_jax.training.metric_writer import MetricWriter, read_metrics


def test_records_of_a_killed_and_continued_run_are_read(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 3.0})
        writer.write(2, "train", {"loss": 2.0})
    lines = tmp_path / "metrics.jsonl"
    again = json.dumps({"step": 2, "kind": "train", "loss": 1.5})
    lines.write_text(
        lines.read_text() + '{"step": 4, "kin\n[]\n{"kind": "train"}\n' + again + '\n{"step": 3, "kind": "tr'
    )
    assert read_metrics(tmp_path) == [
        {"step": 1, "kind": "train", "loss": 3.0},
        {"step": 2, "kind": "train", "loss": 1.5},
    ]
    lines.write_bytes(b"\xff\xfe\n" + lines.read_bytes())
    assert len(read_metrics(tmp_path)) == 2
    with MetricWriter(tmp_path, resume_step=1):  # drops later steps
        assert [record["step"] for record in read_metrics(tmp_path)] == [1]
    lines.unlink()
    assert read_metrics(tmp_path) == []
