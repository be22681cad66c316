import numpy as np
import pytest

from benchmarks.fast_search import build, search_all, table


@pytest.mark.extras
def test_an_index_is_built_joined_and_searched(tmp_path):
    pytest.importorskip("usearch")
    built = build(tmp_path, 70_000, classes=True)
    assert built["parts"] == 3  # 16 parts of 4,096 photos are joined; one more and the rest of 368 are not
    rows = sorted(len(np.load(path, mmap_mode="r")) for path in tmp_path.glob("rows-*/vectors.npy"))
    assert rows == [368, 4096, 65_536]
    assert built["bytes"]["vectors_int8"] > 256 * 69_632
    searches = []
    for known_class in (False, True):
        exact, fast = (search_all(tmp_path, kind, known_class, num_queries=3) for kind in ("exact", "fast"))
        assert [len(rows) for rows in exact["found"]] == [10] * 4
        recall = np.mean(
            [len(set(one) & set(other)) / 10 for one, other in zip(exact["found"], fast["found"], strict=True)]
        )
        assert recall == 1
        searches += [{"name": "a search", "recall": recall, **exact}, {"name": "a search", "recall": recall, **fast}]
    assert searches[0]["found"] != searches[2]["found"]
    lines = table({"photos": 70_000, "build": built, "searches": searches}).splitlines()
    assert lines[0] == "70,000 photos in 3 parts"
    assert [line.split()[-1] for line in lines[-5:]] == ["recall@10", *["1.000"] * 4]
