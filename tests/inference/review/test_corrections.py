import json

import pytest

from aia_jax.inference.review.corrections import Corrections
from aia_jax.utils.errors import InputError


def test_answers_and_their_undoing_survive_a_restart(tmp_path):
    with Corrections(tmp_path) as review:
        review.answer(["a.jpg", "b.jpg"], "dog", True)
        review.answer(["b.jpg"], "dog", False)
        review.answer(["a.jpg"], "dog", None)
        review.answer(["c.jpg"], "Rex", True)
        assert review.labels == ("dog", "Rex")
        assert review.undo() == {"images": ["c.jpg"], "label": "Rex", "answer": True}
        assert review.answers == {"b.jpg": {"dog": False}}
        assert review.labels == ("dog",)
    with Corrections(tmp_path) as review:
        assert review.answers == {"b.jpg": {"dog": False}}
        assert review.undo()["answer"] is None
        assert review.answers == {"a.jpg": {"dog": True}, "b.jpg": {"dog": False}}
        assert [review.undo()["answer"] for _ in range(2)] == [False, True]
        assert review.undo() is None
        assert review.answers == {}
    lines = [json.loads(line) for line in (tmp_path / "corrections.jsonl").read_text().splitlines()]
    assert [line.get("undo", False) for line in lines] == [False] * 4 + [True] * 4


def test_a_line_that_was_not_completed_is_dropped_and_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "corrections.jsonl"
    with Corrections(tmp_path) as review:
        review.answer(["a.jpg"], "dog", True)
    with path.open("a") as file:
        file.write('{"images": ["b.jp')
    with Corrections(tmp_path) as review:
        assert review.answers == {"a.jpg": {"dog": True}}
        review.answer(["b.jpg"], "cat", False)
    whole = path.read_text()
    for damaged in ("{}", "[]", '{"undo": true}\n{"undo": true}\n{"undo": true}', '{"images": ["a"], "label": "x"}'):
        path.write_text(f"{whole}{damaged}\n")
        with pytest.raises(InputError, match=r"corrections.jsonl:[35] is damaged"):
            Corrections(tmp_path)


def test_a_second_review_and_answers_that_are_not_valid_are_refused(tmp_path):
    with Corrections(tmp_path) as review:
        with pytest.raises(InputError, match="another process reviews photos"):
            Corrections(tmp_path)
        with pytest.raises(InputError, match="one line of text"):
            review.answer(["a.jpg"], " dog", True)
        with pytest.raises(InputError, match="true, false or null"):
            review.answer(["a.jpg"], "dog", 1)
        with pytest.raises(InputError, match="at least one photo"):
            review.answer([], "dog", True)
        assert review.answers == {}


def test_a_full_disk_leaves_the_answers_as_they_are_in_the_file(tmp_path):
    with Corrections(tmp_path) as review:
        review.answer(["a.jpg"], "dog", True)
        disk = review._file

        class FullDisk:
            """A disk with room for ten bytes."""

            truncate = disk.truncate

            def write(self, line):
                if disk.seek(0, 2) > review._end:
                    raise OSError(28, "No space left on device")
                return disk.write(line[:10])

        review._file = FullDisk()
        for act in (lambda: review.answer(["b.jpg"], "cat", False), review.undo):
            with pytest.raises(InputError, match=r"is full.*the answer is not stored"):
                act()
        assert review.answers == {"a.jpg": {"dog": True}}
        review._file = disk
        review.answer(["b.jpg"], "cat", True)
        expected = review.answers
    with Corrections(tmp_path) as review:
        assert review.answers == expected == {"a.jpg": {"dog": True}, "b.jpg": {"cat": True}}


def test_answers_follow_a_moved_or_copied_folder_but_not_to_other_photos_of_the_same_name(tmp_path):
    first, copy, other = (tmp_path / name for name in ("first", "copy", "other"))
    for folder, content in ((first, b"a"), (copy, b"a"), (other, b"b")):
        folder.mkdir()
        (folder / "1.jpg").write_bytes(content)
    with Corrections(tmp_path / "review", first) as review:
        review.answer(["1.jpg"], "dog", True)
    for folder in (first, copy, tmp_path):
        with Corrections(tmp_path / "review", folder) as review:
            assert review.answers == {"1.jpg": {"dog": True}}
    with pytest.raises(InputError, match="is another photo with the same name"):
        Corrections(tmp_path / "review", other)
    first.rename(tmp_path / "moved")
    with Corrections(tmp_path / "review", tmp_path / "moved") as review:
        assert review.answers == {"1.jpg": {"dog": True}}
        review.undo()
    with Corrections(tmp_path / "review", other) as review:
        assert review.answers == {}
