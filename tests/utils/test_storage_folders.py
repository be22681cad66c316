import os
from pathlib import Path

import pytest

from aia_jax.utils.errors import InputError
from aia_jax.utils.folder_copy import FolderCopy
from aia_jax.utils.storage_folders import download_folder, upload_folder

URL = "gs://bucket/some/data"


@pytest.fixture
def there(tmp_path, storage):
    """The folder of `URL`, with three files."""
    folder = tmp_path / "cloud" / "bucket" / "some" / "data"
    write(folder, {"a.txt": "a", "sub/b [1].txt": "bb", "empty": ""})
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_second_download_copies_only_what_changed_and_removes_what_is_gone(storage, there):
    folder = download_folder(URL)
    assert read(folder) == read(there) == {"a.txt": "a", "sub/b [1].txt": "bb", "empty": ""}
    assert len(storage.moved("get")) == 3
    assert download_folder(f"{URL}/") == folder
    assert storage.moved("get") == []
    write(there, {"a.txt": "new", "c": "c"})
    (there / "sub" / "b [1].txt").unlink()
    assert read(download_folder(URL)) == {"a.txt": "new", "c": "c", "empty": ""}
    assert sorted(storage.moved("get")) == ["bucket/some/data/a.txt", "bucket/some/data/c"]


def test_a_download_repairs_local_changes(storage, there):
    folder = download_folder(URL)
    write(folder, {"a.txt": "x", "mine": "m"})
    (folder / "empty").unlink()
    assert read(download_folder(URL)) == read(there)


def test_an_interrupted_download_continues(storage, there, monkeypatch):
    monkeypatch.setattr("aia_jax.utils.folder_copy._THREADS", 1)
    storage.refused = "b [1]"
    with pytest.raises(InputError, match="some/data: no permission; check the credentials"):
        download_folder(URL)
    assert "bucket/some/data/a.txt" in storage.moved("get")
    storage.refused = None
    assert read(download_folder(URL)) == read(there)
    assert storage.moved("get") == ["bucket/some/data/sub/b [1].txt"]


def test_a_second_upload_sends_only_what_changed_and_removes_what_is_gone(tmp_path, storage):
    folder, there = tmp_path / "mine", tmp_path / "cloud" / "bucket" / "copy"
    write(folder, {"a": "a", "sub/b": "b", ".hidden": "h"})
    write(there, {"not mine": "n"})
    upload_folder(folder, "s3://bucket/copy")
    assert read(there) == {"a": "a", "sub/b": "b", "not mine": "n"}
    (folder / "a").unlink()
    write(folder, {"sub/b": "new"})
    storage.moved("put")
    upload_folder(folder, "s3://bucket/copy")
    assert storage.moved("put") == ["bucket/copy/sub/b"]
    assert read(there) == {"sub/b": "new", "not mine": "n"}
    (there / "sub" / "b").unlink()  # by hand: it is sent again
    upload_folder(folder, "s3://bucket/copy")
    assert read(there)["sub/b"] == "new"


def test_an_interrupted_upload_continues(tmp_path, storage):
    folder = tmp_path / "mine"
    write(folder, {str(number): "x" for number in range(5)})
    storage.refused, storage.error = "copy/3", OSError("Service Unavailable")
    with pytest.raises(InputError, match="gs://bucket/copy: the storage did not answer as expected"):
        upload_folder(folder, "gs://bucket/copy")
    storage.refused = None
    upload_folder(folder, "gs://bucket/copy")
    assert read(tmp_path / "cloud" / "bucket" / "copy") == read(folder)


def test_an_object_that_arrives_in_part_is_reported_and_sent_again(tmp_path, storage, monkeypatch):
    folder, there = tmp_path / "mine", tmp_path / "cloud" / "bucket" / "copy"
    write(folder, {"a": "aaa", "b": "bbb"})
    put = storage.pipe_file
    with monkeypatch.context() as patched:
        patched.setattr(storage, "pipe_file", lambda path, value: put(path, value[: 2 if path.endswith("a") else 9]))
        with pytest.raises(InputError, match="gs://bucket/copy/a did not arrive completely"):
            upload_folder(folder, "gs://bucket/copy")
    storage.moved("put")
    upload_folder(folder, "gs://bucket/copy")
    assert read(there) == read(folder)
    assert storage.moved("put") == ["bucket/copy/a"]


def test_a_file_removed_while_it_is_sent_leaves_no_object(tmp_path, storage, monkeypatch):
    folder, there = tmp_path / "mine", tmp_path / "cloud" / "bucket" / "copy"
    write(folder, {"checkpoints/1/w": "w", "checkpoints/2/w": "w"})
    copy, put = FolderCopy("gs://bucket/copy", folder), storage.pipe_file

    def removing(path: str, value: bytes) -> None:
        put(path, value)
        (folder / "checkpoints" / "1" / "w").unlink(missing_ok=True)

    monkeypatch.setattr(storage, "pipe_file", removing)
    copy.send_changes()
    copy.send_changes()
    assert read(there) == {"checkpoints/2/w": "w"}


def test_names_that_lead_out_of_the_folder_are_not_copied(tmp_path, storage, there, monkeypatch):
    names = ["../evil", "/etc/evil", "a//b", "sub/../../evil", ".hidden", "a.txt"]
    listing = {f"bucket/some/data/{name}": {"size": 1, "mtime": 1.0} for name in names}
    monkeypatch.setattr(storage, "find", lambda *_args, **_options: listing)
    assert read(download_folder(URL)) == {"a.txt": "a"}
    assert not [*tmp_path.rglob("evil")]


def test_an_incomplete_checkpoint_is_not_downloaded(storage, there):
    write(there, {"checkpoints/1/w": "w", "checkpoints/2/w": "w", "checkpoints/2/digests.json": "{}"})
    assert "checkpoints/2/w" in read(download_folder(URL))
    assert "checkpoints/1/w" not in read(download_folder(URL))


def test_the_digests_of_a_checkpoint_are_sent_last_and_removed_first(tmp_path, storage):
    folder = tmp_path / "mine"
    names = ["checkpoints/2/digests.json", "checkpoints/2/z", "checkpoints/2/a/w", "z.json"]
    write(folder, dict.fromkeys(names, "x"))
    write(folder, {"checkpoints/3.orbax-checkpoint-tmp-1/w": "x"})
    copy = FolderCopy("gs://bucket/copy", folder, tmp_path / "journal")
    copy.send_changes()
    sent = storage.moved("put")
    assert sorted(sent) == sorted(f"bucket/copy/{name}" for name in names)
    assert sent[-1] == "bucket/copy/checkpoints/2/digests.json"
    for name in names:
        (folder / name).unlink()
    copy.send_changes()
    assert storage.moved("delete")[0] == "bucket/copy/checkpoints/2/digests.json"


def test_an_object_that_changes_during_the_download_is_copied_again(storage, there, monkeypatch):
    get, left = storage.get_file, [2]

    def changing(path: str, lpath: str, **options) -> None:
        if path.endswith("a.txt") and left[0]:
            left[0] -= 1
            (there / "a.txt").write_text("longer" * (3 - left[0]))
        get(path, lpath, **options)

    monkeypatch.setattr(storage, "get_file", changing)
    assert read(download_folder(URL)) == read(there)
    (there / "a.txt").write_text("x")
    monkeypatch.setattr(storage, "get_file", lambda path, lpath, **options: Path(lpath).write_text("other"))
    with pytest.raises(InputError, match=r"some/data/a\.txt changes while it is copied; try again later"):
        download_folder(URL)


def test_a_folder_without_files_is_refused(tmp_path, storage):
    with pytest.raises(InputError, match="gs://bucket/none holds no files; check the name"):
        download_folder("gs://bucket/none")
    with pytest.raises(InputError, match="holds no files to copy to gs://bucket/x"):
        upload_folder(tmp_path / "nothing", "gs://bucket/x")


def test_a_full_disk_is_reported_before_the_download(storage, there, monkeypatch):
    usage = type("Usage", (), {"free": 2})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"is full: about 0\.0 MB are needed there; AIA_JAX_CACHE names another place"):
        download_folder(URL)
    assert storage.moved("get") == []


def test_a_line_that_a_killed_process_left_in_the_journal_is_ignored(storage, there):
    folder = download_folder(URL)
    with open(f"{folder}.journal", "ab") as file:
        file.write(b'["a.txt", 1')
    storage.moved("get")
    assert read(download_folder(URL)) == read(there)
    assert storage.moved("get") == []
    os.remove(f"{folder}.journal")
    assert read(download_folder(URL)) == read(there)
    assert len(storage.moved("get")) == 3
