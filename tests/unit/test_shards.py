import random

import pytest

from tests.golden import vectors
from zg_async.wire.shards import ShardConfig, covers, own_segments, select_nodes, upload_tasks

SHARDS = vectors("storage")["shards"]


def configs(pairs):
    return [ShardConfig(shard_id=shard, num_shard=count) for count, shard in pairs]


@pytest.mark.parametrize("row", SHARDS["select"], ids=lambda r: f"{r['nodes']}-{r['replica']}-{r['method']}")
def test_nodes_are_selected_as_the_reference_does(row):
    chosen = select_nodes(configs(row["nodes"]), replica=row["replica"], method=row["method"])
    assert chosen == (tuple(row["selected"]) if row["ok"] else None)


@pytest.mark.parametrize("row", SHARDS["uploadTasks"], ids=lambda r: f"{r['size']}-{r['numShard']}-{r['shardId']}")
def test_upload_tasks_are_the_reference_ones(row):
    config = ShardConfig(row["shardId"], row["numShard"])
    tasks = upload_tasks(row["size"], row["startEntryIndex"], config, row["taskSize"])
    assert [list(task) for task in tasks] == row["fileSegmentIndexesPerRequest"]


def test_random_selection_is_repeatable_with_a_seed():
    nodes = configs([(1, 0)] * 20)
    picks = [select_nodes(nodes, replica=3, method="random", rng=random.Random(5)) for _ in range(2)]
    assert picks[0] == picks[1]
    assert {select_nodes(nodes, method="random") for _ in range(200)} != {(0,)}


def test_a_number_selects_only_nodes_with_that_many_shards():
    nodes = configs([(1, 0), (2, 0), (4, 1), (2, 1)])
    assert select_nodes(nodes, method="2") == (1, 3)
    assert select_nodes(nodes, method="8") is None


@pytest.mark.parametrize(("replica", "method"), [(0, "min"), (-1, "min"), (1, "best"), (1, ""), (1, "²")])
def test_a_wrong_argument_is_a_value_error(replica, method):
    with pytest.raises(ValueError, match=r"replicas|method"):
        select_nodes(configs([(1, 0)]), replica=replica, method=method)


@pytest.mark.parametrize(("shard", "count"), [(0, 0), (1, 1), (0, 3), (-1, 2), (2, 2), (0, 2**40)])
def test_an_impossible_configuration_is_a_value_error(shard, count):
    with pytest.raises(ValueError, match="no shard configuration"):
        ShardConfig(shard, count)


@pytest.mark.parametrize("start", [1, 1024, 5120, 16384 + 512])
def test_the_nodes_of_all_shards_share_a_file_without_gap_or_overlap(start):
    nodes = [ShardConfig(i, 4) for i in range(4)]
    parts = [own_segments(5_242_893, start, node) for node in nodes]
    assert sorted(i for part in parts for i in part) == list(range(21))
    assert all(node.holds(start, i) for node, part in zip(nodes, parts, strict=True) for i in part)


def test_nodes_cover_when_each_place_is_held_often_enough():
    assert covers(configs([(2, 0), (4, 1), (4, 3)]))
    assert not covers(configs([(2, 0), (4, 1)]))
    assert not covers(configs([(2, 0), (4, 1), (4, 3)]), replica=2)
    assert not covers([])
