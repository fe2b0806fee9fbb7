"""The analyser of hangs and slow ranks, on dumps in the recorder's own format."""

import pytest

from herder.supervise.recorder import analyse, stragglers

TP, DP = {"desc": "mesh_tp", "ranks": [0, 1]}, {"desc": "mesh_dp", "ranks": [0, 2]}


def call(group, number, done=True, name="all_reduce", at=0.0, sizes=((4,),), **more):
    return {
        "profiling_name": f"gloo:{name}",
        "collective_seq_id": number,
        "p2p_seq_id": 0,
        "is_p2p": False,
        "retired": done,
        "state": "scheduled",
        "process_group": [group, ""],
        "input_sizes": [list(s) for s in sizes],
        "time_created_ns": int(at * 1e9),
        **more,
    }


def dump(rank, groups, entries, step=41, phase="compute", clock=0.0):
    beat = {"rank": rank, "step": step, "phase": phase, "host": f"node{rank}", "pid": 100 + rank, "clock": clock}
    return {"beat": beat, "groups": groups, "entries": entries}


def world(n, desc="default_pg"):
    return {"0": {"desc": desc, "ranks": list(range(n))}}


def test_the_rank_and_collective_that_never_arrived_are_named():
    groups = world(8, "mesh_dp")
    dumps = {r: dump(r, groups, [call("0", 131), call("0", 132, done=False)]) for r in range(8) if r != 5}
    dumps[5] = dump(5, groups, [call("0", 131)])
    found = analyse(dumps, 8)
    assert found.culprits == (5,)
    [sentence] = found.sentences({r: d["beat"] for r, d in dumps.items()}, {5: "running"})
    assert sentence.startswith("rank 5 never joined all_reduce #132 of group dp (ranks 0, 1, 2, 3, 4, 5, 6, 7)")
    assert "last seen in step 41, phase compute, on node5 (pid 105); its process is running" in sentence


def test_a_rank_that_gives_no_dump_or_no_sign_of_life_is_the_culprit():
    dumps = {r: dump(r, world(3), [call("0", 9, done=False)]) for r in (0, 1)}
    assert analyse(dumps, 3).culprits == (2,)
    dumps[2] = dump(2, world(3), [call("0", 8)])
    assert analyse(dumps, 3, silent=frozenset({2})).culprits == (2,)


def test_who_waits_for_another_is_no_culprit():
    """1 waits for 0 in the tensor group, 0 waits for 2 in the data group: 2 holds everybody up."""
    dumps = {
        0: dump(0, {"tp": TP, "dp": DP}, [call("tp", 4), call("dp", 7, done=False)]),
        1: dump(1, {"tp": TP}, [call("tp", 4), call("tp", 5, done=False)]),
        2: dump(2, {"dp": DP}, [call("dp", 6)]),
    }
    found = analyse(dumps, 3)
    assert found.culprits == (2,)
    assert {(m.ranks, m.group) for m in found.missing} == {((0,), "tp"), ((2,), "dp")}


def test_different_collectives_under_one_number_are_told_apart_from_a_missing_rank():
    dumps = {
        0: dump(0, world(2), [call("0", 3, done=False)]),
        1: dump(1, world(2), [call("0", 3, done=False, name="broadcast")]),
    }
    found = analyse(dumps, 2)
    assert found.culprits == ()
    assert "collective #3 of group world is not the same everywhere" in found.mismatched[0]
    assert "all_reduce" in found.mismatched[0]
    assert "broadcast" in found.mismatched[0]


def test_ranks_that_wait_for_nothing_name_nobody():
    assert analyse({r: dump(r, world(2), [call("0", 3)]) for r in (0, 1)}, 2).culprits == ()


def test_the_last_to_arrive_is_slow_and_told_by_its_ratio():
    """Rank 1 needs 3 seconds a step where the others need 1 and wait."""
    lateness = {0: 1.0, 1: 3.0, 2: 1.0}
    dumps = {r: dump(r, world(3), [call("0", n, at=3 * n + late) for n in range(10)]) for r, late in lateness.items()}
    slow, *rest = stragglers(dumps)
    assert (slow.rank, slow.group) == (1, "world")
    assert slow.ratio == pytest.approx(29 / 11, rel=1e-3)  # of 29 s between first and last, the others wait 9 x 2
    assert all(p.ratio == pytest.approx(1.0) for p in rest)


def test_clocks_that_differ_make_nobody_slow():
    dumps = {r: dump(r, world(2), [call("0", n, at=n + 50.0 * r) for n in range(8)], clock=50.0 * r) for r in (0, 1)}
    assert all(p.ratio == pytest.approx(1.0, abs=1e-6) for p in stragglers(dumps))


def test_durations_of_the_device_count_more_than_the_time_of_the_call():
    """NCCL calls are queued long before they run: whoever waits shortest in the collective came last."""
    wait = {0: 900.0, 1: 10.0, 2: 900.0}
    dumps = {
        r: dump(r, world(3), [call("0", n, at=float(n), duration_ms=ms) for n in range(10)]) for r, ms in wait.items()
    }
    assert stragglers(dumps)[0].rank == 1


def test_a_group_seen_too_rarely_is_not_judged():
    assert stragglers({r: dump(r, world(2), [call("0", 1), call("0", 2, at=r)]) for r in (0, 1)}) == []
