import os
import unicodedata
from urllib.parse import quote

import pytest

from aia_jax.data.importing.labelled_photos import LabelRow, merge_label_rows, read_folders
from aia_jax.data.photo_files import PhotoFiles
from aia_jax.data.photo_finder import PhotoFinder
from aia_jax.data.photo_folder import photo_names
from aia_jax.utils.errors import InputError
from tests.soak.mutation import write_files

OURS = ["2024/c.JPG", "2024/no ending.jpe", "a.jpg", "thumbs/of a user.png", "#sky/d.mpo", "@home/e.apng"]
SYSTEM = [
    *("@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "2024/@EADIR/c.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.jpg"),
    *("$Recycle.Bin/S-1/$R1.jpg", ".Trash-1000/files/x.png", "lost+found/1.jpg", "._a.jpg", "2024/._c.JPG"),
    *("Thumbs.db", "desktop.ini", "__MACOSX/._a.jpg", "My Catalog Previews.lrdata/0/1.jpg", ".dtrash/a.jpg"),
    *(".@__thumb/a.jpg", "CaptureOne/Cache/Thumbnails/a.jpg", "Immich/thumbs/1/p.webp", "SYNOPHOTO_THUMB_XL.jpg"),
    *("PRIVATE/M4ROOT/THMBNL/1.JPG", "P.photoslibrary/resources/derivatives/1.jpeg", "@Recycle/b.jpg"),
    *("System Volume Information/1.png", "@__thumb/a.jpg", "Recycled/Dc1.jpg", "@tmp/1.jpg", "_gsdata_/a.jpg"),
    *("_vti_cnf/a.jpg", "~$a.jpg", "My.cocatalog/Cache/a.jpg", "2024/@Recycle.bin/c.jpg"),
]


def test_files_of_systems_and_programs_are_left_out_and_counted(tmp_path, capsys):
    write_files(
        dict.fromkeys([*OURS, *SYSTEM], b"") | {"Immich/thumbs/.immich": b"", "#snapshot/1/a.jpg": b""}, tmp_path
    )
    write_files({"P.photoslibrary/originals/1/A.heic": b"", "notes.txt": b"", "2024/c.xmp": b""}, tmp_path)
    expected = sorted([*OURS, "P.photoslibrary/originals/1/A.heic"])
    assert list(photo_names(tmp_path)) == expected
    (line,) = capsys.readouterr().err.splitlines()
    count = f"left out: {len(SYSTEM) + 1} files of the system or of a photo program: "
    assert line.startswith(
        count + "2 ._*, 2 in thumbs, 1 SYNOPHOTO_THUMB_XL.jpg, 1 Thumbs.db, 1 desktop.ini, 1 in #recycle, "
    )
    assert line.endswith(" more")


def test_a_folder_is_read_whatever_its_own_name(tmp_path):
    write_files({"#recycle/@eaDir/.x/a.jpg": b""}, tmp_path)
    assert photo_names(tmp_path / "#recycle" / "@eaDir" / ".x") == ("a.jpg",)


def test_photos_that_are_not_read_are_counted_with_advice(tmp_path, capsys):
    jpeg = b"\xff\xd8\xff\xe0" + bytes(40)
    write_files(
        {"a.NEF": b"", "b.nef": b"", "c.cr2": b"", "d.MP4": b"", "e.psd": b"", "f": jpeg, "g": b"text"}, tmp_path
    )
    write_files({"h.jpg_large": jpeg, "._i.nef": b"", ".j.heic.icloud": b"", "k.txt": jpeg, "m.jpg.1": jpeg}, tmp_path)
    write_files({"m.jpg.json": b"{}"}, tmp_path)
    lines = [
        "left out: 1 file of the system or of a photo program: 1 ._*",
        "not read: 2 .nef, 1 .cr2 (raw photos; export them as JPEG); 1 .mp4 (videos); "
        "1 .psd (export them as JPEG or PNG); "
        "1 without a suffix, 1 .jpg_large, 1 .1 (perhaps photos; rename them, such as a.jpg); "
        "1 .icloud (placeholders of iCloud; download the photos first)",
    ]
    with pytest.raises(InputError) as refused:
        photo_names(tmp_path)
    parts = str(refused.value).split("; ")
    assert parts[0] == f"{tmp_path} has no photos that can be read"
    assert sorted(parts[1:]) == sorted("; ".join(lines).split("; "))
    write_files({"l.jpg": b""}, tmp_path)
    assert photo_names(tmp_path) == ("l.jpg",)
    assert [line[:20] for line in capsys.readouterr().err.splitlines()] == [line[:20] for line in lines]


def test_folders_without_permission_are_told(tmp_path, monkeypatch):
    write_files({"a/1.jpg": b"", "b/2.jpg": b""}, tmp_path)
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    files = PhotoFiles()
    assert files.names(tmp_path) == ["b/2.jpg"]
    assert files.notes() == [f"not read: '{tmp_path}/a': Permission denied"]


def test_links_to_folders_are_followed_once(tmp_path):
    write_files({"photos/2024/a.jpg": b"", "disk/b.jpg": b"", "disk/deep/c.jpg": b""}, tmp_path)
    photos = tmp_path / "photos"
    links = {
        "1 best": photos / "2024",
        "disk": tmp_path / "disk",
        "loop": photos,
        "up": tmp_path,
        "again": tmp_path / "disk",
    }
    for name, target in links.items():
        (photos / name).symlink_to(target)
    (tmp_path / "disk" / "back").symlink_to(photos)
    (photos / "gone.jpg").symlink_to("nowhere")
    assert list(photo_names(photos)) == ["2024/a.jpg", "again/b.jpg", "again/deep/c.jpg", "gone.jpg"]
    (tmp_path / "link").symlink_to(photos)
    assert photo_names(tmp_path / "link") == photo_names(photos)


def test_only_label_folders_become_labels(tmp_path, capsys):
    names = [
        "sky/a.jpg",
        "sky/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
        "#recycle/b.jpg",
        "@eaDir/c.jpg",
        "sky/d.nef",
        "top.jpg",
    ]
    write_files({name: name.encode() for name in names}, tmp_path / "plain")
    found = read_folders(tmp_path / "plain")
    assert [(row.photo, row.labels) for row in found.rows] == [("top.jpg", ()), ("sky/a.jpg", ("sky",))]
    assert "left out: 3 files" in (err := capsys.readouterr().err)
    assert "not read: 1 .nef" in err
    write_files({"train/sky/a.jpg": b"1", "test/sea/b.jpg": b"2", "@eaDir/c.jpg": b""}, tmp_path / "splits")
    (tmp_path / "splits" / "train" / "blue").symlink_to("sky")
    rows = {(row.photo, *row.labels, row.split) for row in read_folders(tmp_path / "splits").rows}
    assert rows == {
        ("test/sea/b.jpg", "sea", "test"),
        ("train/blue/a.jpg", "sky", "train"),
        ("train/blue/a.jpg", "blue", "train"),
    }


NFD = unicodedata.normalize("NFD", "Übung é.jpg")
FILES = [
    *(
        "a.jpg",
        "b/a.jpg",
        "b/IMG_1.JPG",
        "c/only here.jpeg",
        NFD,
        "c/50%.jpg",
        "two.jpg",
        "two.png",
        "x/t.jpg",
        "y/t.jpg",
    ),
    *("\N{RED APPLE}.jpg", "c/my photo (1).png", "raw.NEF", "raw.jpg", "d/alone.nef", "b/Case.jpg", "b/case.jpg"),
]
FOUND = {
    "a.jpg": "a.jpg",
    "b\\a.jpg": "b/a.jpg",
    "C:\\Users\\x\\b\\a.jpg": "b/a.jpg",
    "{folder}/a.jpg": "a.jpg",
    "photos/a.jpg": "a.jpg",
    "/data/upload/3/img_1.jpg": "b/IMG_1.JPG",
    "../elsewhere/only here.jpg": "c/only here.jpeg",
    "only here": "c/only here.jpeg",
    unicodedata.normalize("NFC", NFD): NFD,
    "/x/" + unicodedata.normalize("NFC", NFD).upper(): NFD,
    quote(unicodedata.normalize("NFC", NFD)): NFD,
    "https://host/b/IMG_1.JPG?width=3#top": "b/IMG_1.JPG",
    "s3://bucket/only%20here.jpeg": "c/only here.jpeg",
    "/data/local-files/?d=photos/b/a.jpg": "b/a.jpg",
    "/data/local-files/?d=photos/a.jpg": "a.jpg",
    "1a2b3c4d-my_photo_1.png": "c/my photo (1).png",
    "/data/upload/1/00000000-50%25.jpg": "c/50%.jpg",
    "c/50%.jpg": "c/50%.jpg",
    "two.png": "two.png",
    "z/x/t.jpg": "x/t.jpg",
    "raw.NEF": "raw.jpg",
    "b/case.jpg": "b/case.jpg",
}
NOT_FOUND = {
    "z/a.jpg": "'z/a.jpg' can be 'a.jpg' or 'b/a.jpg'; write the name as it is in the folder",
    "t.jpg": "'t.jpg' can be 'x/t.jpg' or 'y/t.jpg'; ",
    "two": "'two' can be 'two.jpg' or 'two.png'; ",
    "two.gif": "'two.gif' can be 'two.jpg' or 'two.png'; ",
    "b/CASE.jpg": "'b/CASE.jpg' can be 'b/Case.jpg' or 'b/case.jpg'; ",
    "my_photo_1.png": "no photo 'my_photo_1.png' in ",
    "zz.jpg": "no photo 'zz.jpg' in ",
    "https://host/\N{BANANA}.jpg": "no photo ",
    "https://host/on(ly)_here.jpg": "no photo ",
    "d/alone.nef": "no photo 'd/alone.nef' in ",
    "/etc/passwd": "'/etc/passwd' leaves the folder of the photos",
    "../../b/zz.jpg": "leaves the folder of the photos",
    "b": "no photo 'b' in ",
    "": "must be a file name, found ''",
    "\ud800.jpg": "cannot be written as UTF-8",
}


@pytest.fixture
def photos(tmp_path):
    write_files(dict.fromkeys(FILES, b"x"), tmp_path / "photos")
    return tmp_path / "photos"


def test_names_of_other_tools_and_systems_are_found(photos):
    for name, expected in FOUND.items():
        finder = PhotoFinder(photos)
        assert finder.find(name.format(folder=photos)) == (expected, ""), name
    for name, problem in NOT_FOUND.items():
        found, why = PhotoFinder(photos).find(name)
        assert not found, name
        assert problem in why


def test_two_names_for_one_photo_are_not_merged(photos, capsys):
    rows = [
        *(LabelRow("t:1", "train/only here.jpeg", ("sky",)), LabelRow("t:2", "val/only here.jpeg", ("sea",))),
        *(LabelRow("t:3", "two.png", ("sky",)), LabelRow("t:4", "./two.png", ("sea",))),
        *(LabelRow("t:5", "b/img_1.jpg", ("sky",)), LabelRow("t:6", "b\\IMG_1.JPG", ("sea",))),
    ]
    problems = []
    merged = merge_label_rows(rows, photos, None, problems)
    assert [(row.photo, row.labels) for row in merged] == [("two.png", ("sea", "sky")), ("b/IMG_1.JPG", ("sea", "sky"))]
    assert problems == [
        "t:2: 'val/only here.jpeg' and 'train/only here.jpeg' both lead to 'c/only here.jpeg'; "
        "write the name as it is in the folder"
    ]
    line = (
        "3 photos found by a name with another folder, case, form of Unicode or suffix, such as 'train/only here.jpeg' "
    )
    assert capsys.readouterr().err == f"{line}for 'c/only here.jpeg'\n"


def test_a_list_of_photos_may_have_names_of_another_system(photos, write, capsys):
    listed = write(f"B\\img_1.jpg\n{unicodedata.normalize('NFC', NFD)}\na.jpg\nB\\img_1.jpg\n".encode(), "names.txt")
    assert photo_names(photos, listed) == ("b/IMG_1.JPG", NFD, "a.jpg", "b/IMG_1.JPG")
    assert "2 photos found by a name with another folder" in capsys.readouterr().err


def test_many_names_of_other_folders_are_found_in_seconds(tmp_path, monkeypatch):
    names = [f"{number}/rgb.jpg" for number in range(30_000)]
    monkeypatch.setattr(PhotoFiles, "names", lambda self, folder: names)
    finder = PhotoFinder(tmp_path)
    assert all(finder.find(f"D:\\data\\{name.replace('/', chr(92))}") == (name, "") for name in names[:3000])
    assert finder.find("D:\\rgb.jpg")[1].startswith("'D:\\\\rgb.jpg' can be '0/rgb.jpg' or '1/rgb.jpg' or 29,998 more")
