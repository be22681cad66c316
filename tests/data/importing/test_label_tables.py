import re

import pytest

from aia_jax.data.importing.label_tables import read_table
from aia_jax.utils.errors import InputError


@pytest.fixture
def read(write):
    """Writes a table and reads it."""
    return lambda text, encoding="utf-8", **options: read_table(write(text.encode(encoding), "labels.csv"), **options)


def rows_of(found):
    return [(row.photo, *row.labels) for row in found.rows]


BOTH = [("a.jpg", "sky", "sea"), ("b.jpg", "sea")]


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("image,labels\na.jpg,sky;sea\nb.jpg,sea\n", "separated by ';'"),
        ("image,labels\na.jpg,sky|sea\nb.jpg,sea\n", "separated by '|'"),
        ("image;labels\na.jpg;sky|sea\nb.jpg;sea\n", "separated by '|'"),
        ('image,labels\na.jpg,"sky, sea"\nb.jpg,sea\n', "separated by ','"),
        ("image_name,tags\na.jpg,sky sea\nb.jpg,sea\nc.jpg,sky\n", "separated by blanks"),
        ("File Name\tKeywords\r\na.jpg\tsky;sea;\r\nb.jpg\tsea\r\n", "separated by ';'"),
        ("image,labels\na.jpg,\"['sky', 'sea']\"\nb.jpg,['sea']\n", "lists"),
        ('image,labels\na.jpg,"[""sky"", ""sea""]"\nb.jpg,"[""sea""]"\n', "lists"),
        ('"image", "labels"\n"a.jpg", "sky;sea"\n\n"b.jpg", "sea"\n,\n', "separated by ';'"),
        ('"image" ,"labels"\n"a.jpg" ,"sky, sea"  \nb.jpg,sea\n', "separated by ','"),
    ],
)
def test_cells_with_several_labels_are_read(read, text, how):
    found = read(text)
    assert rows_of(found)[:2] == BOTH
    assert how in found.understood
    assert found.problems == ()
    assert read(text, "utf-8-sig") == read(text, "utf-16") == found  # with a byte-order mark


@pytest.mark.parametrize("header", ["image,label", "photo,Class", "image,labels"])
def test_one_row_per_label_is_read(read, header):
    found = read(f"{header}\na.jpg,polar bear\na.jpg,sea\nb.jpg,sea\n")
    assert rows_of(found) == [("a.jpg", "polar bear"), ("a.jpg", "sea"), ("b.jpg", "sea")]
    assert "one per cell" in found.understood
    assert [row.where for row in found.rows] == ["labels.csv:2", "labels.csv:3", "labels.csv:4"]


def test_columns_of_zero_and_one_are_read_and_other_values_are_reported(read):
    found = read(",image,sky,polar bear,split\n0,a.jpg,1,0,train\n1,b.jpg,0.0,TRUE,test\n2,c.jpg,N,,val\n")
    assert rows_of(found) == [("a.jpg", "sky"), ("b.jpg", "polar bear"), ("c.jpg",)]
    assert [row.split for row in found.rows] == ["train", "test", "validation"]
    assert "2 columns of 0 and 1 as labels, splits in column 'split'" in found.understood
    found = read("image,label,dataset\na,sky,Training\nb,sea,test\n")
    assert [row.split for row in found.rows] == ["train", "test"]
    found = read("image,sky,width\na.jpg,1,640\nb.jpg,0,1\n")
    assert rows_of(found) == [("b.jpg", "width")]
    assert "labels.csv:2: column 'width' holds '640'; each column beside photos and splits" in found.problems[0]


def test_columns_and_separator_can_be_given(read):
    text = "Foto,Was,label\na.jpg,sky/sea,1\nb.jpg,sea,2\n"
    found = read(text, photo_column="Foto", label_column="Was", separator="/")
    assert rows_of(found) == BOTH
    assert found.understood.endswith("labels in column 'Was', separated by '/'; not used: 'label'")
    whole = read("image,labels\na.jpg,red; not green\n", separator="none")
    assert rows_of(whole) == [("a.jpg", "red; not green")]


def test_unusual_names_are_read(read):
    text = 'image,labels\n"sub/a ""b"", c.jpg",sky\n"line\nbreak.jpg",sky\nسیب 🍎.jpg,"ابر;sea"\nnext.jpg,\n'
    found = read(text)
    assert rows_of(found) == [
        ('sub/a "b", c.jpg', "sky"),
        ("line\nbreak.jpg", "sky"),
        ("سیب 🍎.jpg", "ابر", "sea"),
        ("next.jpg",),
    ]
    assert [row.where for row in found.rows] == [f"labels.csv:{line}" for line in (2, 3, 5, 6)]


def test_all_bad_rows_are_listed_with_their_lines(read):
    found = read("image,labels,split\na.jpg,sky,train\nb.jpg,sky;;sea,train\nc.jpg,sky,dev2\nd.jpg,sky\ne.jpg,sky,\n")
    assert rows_of(found) == [("a.jpg", "sky")]
    expected = [
        "labels.csv:5: 2 cells, but the header has 3; a cell that holds ',' must be in quotes",
        "labels.csv:3: an empty label in 'sky;;sea'",
        "labels.csv:4: split 'dev2' is unknown; known: train, training, val, valid, validation, dev, test, testing",
        "labels.csv:6: split '' is unknown; known: train, training, val, valid, validation, dev, test, testing",
    ]
    assert list(found.problems) == expected
    found = read("image,labels\na.jpg,[sky]\nb.jpg,['sea']\n" + "c.jpg," + "[" * 500 + ']\nd.jpg,"dog, cat"\n')
    assert rows_of(found) == [("b.jpg", "sea")]
    assert [problem.split(": ")[0] for problem in found.problems] == [f"labels.csv:{line}" for line in (2, 4, 5)]
    assert found.problems[2].endswith("""'dog, cat' is not a list of labels, such as ["sky", "sea"]""")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, r"labels\.csv is empty; expected a header such as image,labels"),
        ("a.jpg,sky\n", {}, "the first line must be a header such as image,labels"),
        (
            "Foto,Was\na.jpg,sky\n",
            {},
            r"none of the columns \(Foto, Was\) has a known name for photos .*--photo_column",
        ),
        ("image\na.jpg\n", {}, r"no column has a known name for labels .*--label_column names one"),
        ("image,labels,labels\na.jpg,b,c\n", {}, "two columns are called 'labels'"),
        ("image,labels\n", {"label_column": "x"}, "has no column 'x', which --label_column names; its columns: image"),
        (f"image,labels\na,sky\nb,{'x' * 200_000}\n", {}, r"\.csv:3 is not a row of a table: field larger than field"),
        ("x" * 200_000, {}, r"labels\.csv:1 is not a row of a table"),
        ('image,labels\na.jpg,"sky\nb.jpg,sea\n', {}, r"\.csv:2 .*: unexpected end of data; check its quotes"),
        ('image,labels\na.jpg,"sky"sea\n', {}, r"\.csv:2 is not a row of a table: ',' expected after '\"'"),
    ],
)
def test_unusable_tables_are_refused(read, text, options, message):
    with pytest.raises(InputError, match=message):
        read(text, **options)


TWO_PHOTOS = [("a.jpg", "dog", "cat"), ("b.jpg", "dog")]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"sep=;\r\nimage;labels\r\na.jpg;dog, cat\r\nb.jpg;dog\r\n", {}),
        ('image\tlabels\na.jpg\t"dog, cat"\nb.jpg\tdog\n'.encode("utf-16-le"), {}),  # without a byte-order mark
        ('image\tlabels\na.jpg\t"dog, cat"\nb.jpg\tdog\n'.encode("utf-32"), {}),
        (b"image;labels;;\na.jpg;dog, cat;;\nb.jpg;dog\n;;;\n", {}),
        (b"image,labels\ra.jpg,dog|cat\rb.jpg,dog\r", {}),  # the line ends of old Macs
        (b"image,labels\na.jpg,['dog' 'cat']\nb.jpg,['dog']\n", {}),  # NumPy's lists
        (b'image,choice\na.jpg,"{""choices"": [""dog"", ""cat""]}"\nb.jpg,dog\n', {}),
        (b'image,labels\na.jpg,"[{""x"": 1, ""rectanglelabels"": [""dog"", ""cat""]}]"\nb.jpg,"[""dog""]"\n', {}),
        (b"image,labels\na.jpg,\"{'dog': 1, 'cat': 1, 'x': 0}\"\nb.jpg,['dog']\n", {}),
        ("image,dog,cat,sky\na.jpg,WAHR,✓,NaN\nb.jpg,oui,non,nein\n".encode(), {}),
        (b'image,labels\na.jpg,"dog\ncat"\nb.jpg,dog\n', {}),
        (b"photo;labels;score\na.jpg;dog|cat;0,5\na.jpg;sea;0,05\nb.jpg;dog;1,0\n", {"rows": ["score >= 0,5"]}),
        (b"id,image,file_name,labels\n7,1,a.jpg,dog;cat\n8,2,b.jpg,dog\n", {}),
        (b"filename, dog, cat\na.jpg, 1, Y\nb.jpg, 1, \n", {}),
        (b"image,dog,cat,url\na.jpg,1,1,u/1\nb.jpg,1,0,u/2\n", {"ignore_columns": ["url"]}),
        (b"image,dog,cat\na.jpg,1.00,1.0\nb.jpg,1,-1\n", {}),
        (b"image,tags\na.jpg,dog cat\nb.jpg,dog\n", {"separator": " "}),
        (b"image,labels;x\na.jpg,dog;cat\nb.jpg,dog\n", {"label_column": "labels;x"}),
    ],
)
def test_dialects_of_other_programs_are_read(write, content, options):
    found = read_table(write(content, "labels.csv"), **options)
    assert rows_of(found) == TWO_PHOTOS
    assert found.problems == ()


def test_rows_are_chosen_by_a_condition(read):
    text = "ImageID,LabelName,Confidence,sure\na,dog,1,high\na,cat,0,low\nb,dog,0.7,High\n"
    for condition in ("Confidence >= 0.5", "Confidence != 0", "Confidence>0.5", "sure = high"):
        assert rows_of(read(text, rows=[condition])) == [("a", "dog"), ("b", "dog")]
    assert len(read(text, ignore_columns=["Confidence", "sure"]).rows) == 3
    assert len(read("image,label,user\na,dog,1\na,cat,1\nb,dog,2\n").rows) == 3  # each photo has one author
    found = read(text, rows=["sure = high", "Confidence < 1"])
    assert rows_of(found) == [("b", "dog")]
    assert "1 of 3 rows have sure = high and Confidence < 1" in found.understood


@pytest.mark.parametrize(
    ("text", "options", "messages"),
    [
        (
            'image,tags\na,"New York, NY"\nb,"Albany, NY"\nc,Rome\n',
            {},
            ["--separator none: 'New York, NY'  and", "--separator \",\": 'New York' | 'NY'  and  'Albany' | 'NY'"],
        ),
        ("image,Keywords\na,polar bear\nb,black bear\n", {}, ["--separator none: 'polar bear'", '--separator " ": ']),
        ("image,labels\na,sky|sea;sun\nb,sky|sun\n", {}, ["--separator none", '--separator "|"', '--separator ";"']),
        ('image,label\na,dog\na,"cat, small"\n', {}, ['--separator ","']),
        ("image,tags\na,dog or sky\nb,dog\nc,sky\n", {}, ["--separator none: 'dog or sky'", '--separator " ": ']),
        ("image,name;label\na,b;c\n", {}, ["--delimiter ',': columns ['image', 'name;label']", "--delimiter ';'"]),
        (
            "image,label,is_absent\na,dog,0\na,cat,1\n",
            {},
            ['--rows "is_absent = 0": reads 1 of 2 rows', "_columns 'is"],
        ),
        ("image,label,probability\na,dog,.9\na,cat,.2\n", {}, ['--rows "probability >= 0.5": reads 1 of 2 rows']),
        ("image,label,reviewed\na,dog,y\na,cat,n\n", {}, ['--rows "reviewed = y": reads 1 of 2 rows']),
        ("image,label,review\na,dog,ok\na,cat,bad\n", {}, ['"review = bad": reads 1', '"review = ok": reads 1']),
        ("image,dog,,cat\na,1,1,0\nb,0,1,1\n", {}, ["column 3 has no name; write its label into the first line"]),
        ("image,dog,Unnamed: 2\na,1,1\nb,0,1\n", {}, ["column 3 has no name"]),
        ("image,label\na,sky|sea\nb,sun\n", {}, ["--separator none", '--separator "|"']),
        ('image,tags\na,sky sea\nb,"sea, sky"\nc,sky\nd,sea\n', {}, ["--separator none", '","', '--separator " "']),
        ("image,dog\na,0.93\nb,0.1\n", {}, ["columns of labels hold 0.1; write 1 where the label holds and 0"]),
        ("image,dog,cat\na,1,-1\nb,,0\n", {}, ["hold -1 beside 0 or blank cells; write 1 where the"]),
        ("image,dog,width\na,1,640\nb,0,480\n", {}, ["'width' holds '640'", "--ignore_columns 'width' leaves out"]),
        (
            "image,dog,a b\na,?,640\n",
            {},
            [
                "'dog' holds '?', 'a b' holds '640'",
                "write 1 where it holds and 0",
                "--ignore_columns 'dog' 'a b' leaves",
            ],
        ),
        (
            "f.filepath,tags,truth.label\na,val,dog\n",
            {},
            ["--label_column tags: 'val'", "--label_column truth.label: 'dog'"],
        ),
        (
            "image,label,count\na,dog,0\nb,cat,2\n",
            {},
            ['--rows "count = 0": reads 1 of 2', '--rows "count = 2": reads 1'],
        ),
        ("image,label1,label2\na,dog,\n", {}, ["join label1, label2 into one column labels"]),
        ("0.jpg,0,1,1\n1.jpg,0,0,1\n", {}, ["the first line must be a header such as image,labels"]),
        ("image,dog,cat\na,1,0\na,0,1\n", {}, ["the entries of 'a' have different labels"]),
        ("image,dog,cat,is_valid\na,1,0,0\n", {}, ['--rows "is_valid = 0"', "splits need a column split"]),
        ("image,label,not\na,dog,not\na,cat,\n", {}, ['--rows "not = ": reads 1 of 2', '--rows "not = not": reads 1']),
        ("image,label,polarity\na,dog,negative\na,cat,positive\n", {}, ['--rows "polarity = positive": reads 1']),
        (
            "image,label,score\na,dog,0,5\n".replace(",", ";").replace("0;5", "0,5"),
            {},
            ['--rows "score >= 0.5": reads 1'],
        ),
        ("image,choice,annotator\na,dog,1\na,cat,2\n", {}, ['--rows "annotator = 1": reads 1 of 2 rows']),
        ("image,tags\na,John Doe\nb,Ann Doe\nc,dog John Doe\nd,dog\n", {}, ["--separator none: ", '--separator " ": ']),
        ("image,tags\na,sky sea\nb,sky\nc,sea\nd,polar bear\n", {}, ["--separator none: ", '--separator " ": ']),
        ("image,path,label\na.jpg,b.jpg,dog\n", {}, ["--photo_column image: 'a.jpg'", "--photo_column path: 'b.jpg'"]),
        (
            "image,label,class\na.jpg,dog,animal\n",
            {},
            ["--label_column label: 'dog'", "--label_column class: 'animal'"],
        ),
        ("image,label\na,dog\n", {"rows": ["x = 1"]}, ["has no column 'x', which --rows names"]),
        ("image,label\na,dog\n", {"rows": ["label"]}, ["must be a column, a comparison and a value"]),
        ("image,label\na,dog\n", {"delimiter": "::"}, ["--delimiter '::' must be one character"]),
        (",,\n,,\n", {}, ["labels.csv is empty"]),
        ("image,labels\n", {}, ["labels.csv has no row that can be read"]),
        ('image,labels\na,{1: 1}\nb,"[{""label"": ""dog"", ""score"": 0.4}]"\n', {}, ["'{1: 1}' is not a list", "'[{"]),
        (
            'image,labels\na,"{dog,park}"\nb,{cat}\n',
            {},
            ["no row that can be read", """list of labels, such as ["sky","""],
        ),
    ],
)
def test_tables_that_can_be_read_in_two_ways_are_refused_with_both(read, text, options, messages):
    with pytest.raises(InputError) as caught:
        read(text, **options)
    assert [message for message in messages if message not in str(caught.value)] == []


@pytest.mark.parametrize("sign", ["#", "\uff0c", "\u3001", " + ", "/", ":", "<br>", " > ", " and ", "||"])
@pytest.mark.parametrize("column", ["labels", "label"])
def test_other_separators_are_asked_about_and_can_be_given(read, sign, column):
    lines = [f"a,bread{sign}dog", "b,sand", "c,dog", "d,bread", f"e,sand{sign}dog"]
    text = f"image,{column}\n" + "\n".join(lines) + "\n"
    shown = sign if sign == " and " else sign.strip()
    with pytest.raises(InputError, match=re.escape(f"--separator \"{shown}\": 'bread' | 'dog'  and  'sand'")):
        read(text)
    assert rows_of(read(text, separator=shown))[::4] == [("a", "bread", "dog"), ("e", "sand", "dog")]
    assert rows_of(read(text, separator="none"))[0] == ("a", f"bread{sign}dog")
    assert rows_of(read(f"image,{column}\na,t-shirt\nb,shirt\nc,C++\nd,C\n"))[2:] == [("c", "C++"), ("d", "C")]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("straße, Übung", "cp1252"), ("собака", "cp1251"), ("犬|空|ネコ", "cp932"), ("straße, Übung", "mac_roman")],
)
def test_the_encoding_of_a_table_is_named_and_can_be_given(write, text, encoding):
    path = write(f"image;label\na.jpg;{text}\n".encode(encoding), "labels.csv")
    with pytest.raises(InputError, match=r"name its encoding with --encoding.*of these:\n  as cp1252: ") as caught:
        read_table(path)
    assert f"\n  as {encoding}: a.jpg;{text}" in str(caught.value)
    assert rows_of(read_table(path, encoding=encoding, separator="none")) == [("a.jpg", text)]
    with pytest.raises(InputError, match="'rot13' is no known encoding of text"):
        read_table(path, encoding="rot13")
