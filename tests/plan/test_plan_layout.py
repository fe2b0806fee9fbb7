"""Layouts: what is refused and why, what the search finds, memory that adds up."""

import dataclasses
import json

import pytest

from herder.model import SHAPES, Count
from herder.plan import GPUS, Software, memory_per_rank, parse_layout, plan, refusal, time_step
from herder.train import Layout

BIG, SMALL = SHAPES["llama3.1-405b"], SHAPES["llama3.1-8b"]


@pytest.mark.parametrize(
    ("layout", "gpus", "seq_len", "words"),
    [
        (Layout(8, 1, 16, 64), 16_384, 8192, "is 8192, not 16384 GPUs"),
        (Layout(tp=16, dp=4), 64, 8192, "leaves the server of 8"),
        (Layout(tp=3, dp=1), 3, 8192, "n_heads 32 is not divisible by tp 3"),
        (Layout(cp=8, dp=1), 8, 8200, "not divisible by 2 x cp = 16"),
        (Layout(pp=64, dp=1), 64, 8192, "32 layers are fewer than the pp = 64 stages"),
        (Layout(pp=2, dp=1, chunks=20), 2, 8192, "pp x chunks = 40"),
        (Layout(dp=1, chunks=2), 1, 8192, "needs a pipeline"),
        (Layout(dp=8, micro_batch=3), 8, 8192, "not divisible by dp x micro_batch = 8 x 3"),
        (Layout(dp=8, micro_batch=0), 8, 8192, "micro_batch is 0"),
        (Layout(dp=8, shard=3), 8, 8192, "shard 3 does not divide dp 8"),
        (Layout(dp=8), 8, 2**18, "beyond the model's context of 131072"),
    ],
)
def test_a_layout_that_cannot_run_is_refused_with_its_reason(layout, gpus, seq_len, words):
    assert words in refusal(SMALL, layout, gpus, GPUS["h100"], seq_len, 128 * seq_len)


def test_kv_heads_bound_tensor_parallelism():
    narrow = dataclasses.replace(SMALL, n_kv_heads=4)
    assert "n_kv_heads 4" in refusal(narrow, Layout(tp=8, dp=1), 8, GPUS["h100"], 8192, 2**20)


def test_a_tied_head_cannot_be_cut_from_its_embedding():
    assert "ties them" in refusal(SHAPES["llama3.2-1b"], Layout(pp=2, dp=1), 2, GPUS["h100"], 8192, 2**20)


def test_a_layout_that_does_not_fit_says_how_much_it_needs():
    with pytest.raises(ValueError, match=r"needs \d+\.\d GB on a rank, a h100 has 80"):
        plan(BIG, 8, "h100", 8192, 2**20, 1e9, {"tp": 8})


@pytest.mark.parametrize(
    ("name", "sizes"), [("gpus", (0, 2**20, 1e9)), ("gpus", (10**9, 2**20, 1e9)), ("tokens", (8, 2**20, 0))]
)
def test_sizes_out_of_range_are_refused_by_name(name, sizes):
    gpus, batch, tokens = sizes
    with pytest.raises(ValueError, match=f"{name} is "):
        plan(SMALL, gpus, "h100", 8192, batch, tokens)


def test_a_model_too_big_for_the_gpus_is_refused():
    with pytest.raises(ValueError, match="no layout of 8 h100 can train"):
        plan(BIG, 8, "h100", 8192, 2**20, 1e9)


def test_an_unknown_gpu_is_refused_with_the_known():
    with pytest.raises(ValueError, match="'h1000'; known are a100"):
        plan(SMALL, 8, "h1000", 8192, 2**20, 1e9)


@pytest.mark.parametrize("text", ["tp", "tp=x", "tp=1,tp=2", "ep=2", "recompute=some"])
def test_a_layout_s_text_is_checked(text):
    with pytest.raises(ValueError, match="layout part"):
        parse_layout(text)


def test_a_layout_s_text_is_read_back():
    layout = Layout(8, 1, 16, 64, 2, shard=16, chunks=4, recompute="full", reshard_after_forward=True)
    assert Layout(**parse_layout(str(layout))) == layout
    assert parse_layout("tp=8, dp=4") == {"tp": 8, "dp": 4}


def test_the_given_part_of_a_layout_is_kept_and_the_rest_is_chosen():
    made = plan(SMALL, 64, "h100", 8192, 2**21, 1e12, {"tp": 4, "recompute": "full"})
    assert (made.best.layout.tp, made.best.layout.recompute) == (4, "full")
    assert made.best.layout.gpus == 64
    whole = plan(SMALL, 64, "h100", 8192, 2**21, 1e12, Layout(tp=8, pp=2, shard=2))
    assert whole.best.layout == Layout(tp=8, pp=2, dp=4, shard=2)


def test_freeing_gathered_parameters_saves_memory_and_costs_traffic():
    kept, freed = (Layout(dp=64, reshard_after_forward=reshard) for reshard in (False, True))
    gpu = dataclasses.replace(GPUS["h100"], network=1e9)  # slow enough that gathering twice cannot hide
    memory = [memory_per_rank(SMALL, lay, 8192, 4)["weights, bf16"] for lay in (kept, freed)]
    traffic = [time_step(SMALL, lay, gpu, 8192, 2**21).parts["FSDP, exposed"] for lay in (kept, freed)]
    assert memory[1] < memory[0] / 3
    assert traffic[1] > 2 * traffic[0]


def test_copies_of_the_state_in_every_server_hold_more_and_gather_within_it():
    whole, copies = (Layout(dp=64, shard=shard, reshard_after_forward=True) for shard in (0, 8))
    gpu = dataclasses.replace(GPUS["h100"], network=1e9)
    state = [memory_per_rank(SMALL, lay, 8192, 4)["optimizer and master weights, fp32"] for lay in (whole, copies)]
    traffic = [time_step(SMALL, lay, gpu, 8192, 2**21).parts["FSDP, exposed"] for lay in (whole, copies)]
    assert state[1] == 8 * state[0]
    assert traffic[1] < traffic[0]


def test_a_layout_whose_parts_do_not_fit_is_refused_by_its_parts():
    with pytest.raises(ValueError, match=r"with tp=8,cp=1,pp=16,dp=64 of 16384 h100 .* is 8192, not 16384 GPUs"):
        plan(BIG, 16_384, "h100", 8192, 2**24, 1e12, parse_layout("tp=8,cp=1,pp=16,dp=64"))


def test_one_gpu_holds_the_trainer_s_whole_state():
    """Weights, gradient sums, masters and moments; the bf16 gradients are added to the sums and freed."""
    config = SHAPES["miniature"]
    memory = memory_per_rank(config, Layout(dp=1), 256, 4)
    state = memory["weights, bf16"] + memory["gradient sums, fp32"] + memory["optimizer and master weights, fp32"]
    trainer = Count(config).training_state()
    assert state == sum(trainer.values()) - trainer["gradients, bf16"]


@pytest.mark.parametrize("fused", [True, False])
def test_more_ranks_of_any_kind_and_more_recomputation_hold_less_each(fused):
    def total(**axes):
        layout = Layout(**{"dp": 8, "micro_batch": 4, "recompute": "full", **axes})
        return sum(memory_per_rank(SMALL, layout, 8192, 8, fused=fused).values())

    assert max(total(tp=2), total(cp=2), total(pp=2, micro_batch=2), total(dp=16)) < total()
    assert total(recompute="full") < total(recompute="alternate") < total(recompute="elementwise")
    assert total(recompute="elementwise") < total(recompute="none")


def test_copies_of_the_whole_model_hold_what_each_would_alone():
    alone, copies = (memory_per_rank(SMALL, Layout(dp=dp, shard=1), 8192, 8) for dp in (1, 8))
    assert alone == copies


def test_uncompiled_blocks_keep_what_the_module_keeps():
    """Against the count of activations, which a test of its own compares with a forward pass."""
    memory = memory_per_rank(SMALL, Layout(dp=8), 8192, 2, fused=False)
    count = Count(SMALL).activations(8192)["all kept"]
    assert memory["activations"] == pytest.approx(count - 8192 * (2 * (2 * SMALL.dim + SMALL.vocab_size) + 8), rel=1e-6)


def test_the_bubble_is_the_paper_s_fraction():
    layout = Layout(8, 1, 16, 64, chunks=4)
    parts = time_step(BIG, layout, GPUS["h100"], 8192, 2**24).parts
    ideal = sum(s for name, s in parts.items() if name not in ("pipeline bubble", "FSDP, exposed", "optimizer"))
    assert parts["pipeline bubble"] / ideal == pytest.approx((16 - 1) / (4 * 32))


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_lone_micro_batch_passes_the_stages_one_after_another(chunks):
    layout = Layout(pp=4, dp=1, chunks=chunks)
    parts = time_step(SHAPES["llama3.1-70b"], layout, GPUS["h100"], 8192, 8192).parts
    ideal = sum(s for name, s in parts.items() if name not in ("pipeline bubble", "optimizer"))
    assert parts["pipeline bubble"] / ideal == pytest.approx(3)


def test_the_search_beats_a_layout_given_by_hand_and_names_the_second():
    given = plan(SMALL, 64, "h100", 8192, 2**21, 1e12, {"tp": 8, "dp": 8})
    found = plan(SMALL, 64, "h100", 8192, 2**21, 1e12)
    assert found.best.timing.step < given.best.timing.step
    assert found.best.timing.step <= found.second.timing.step
    assert sum(found.best.memory.values()) <= GPUS["h100"].memory
    assert found.best.layout.gpus == 64


def test_the_json_is_plain_and_the_table_names_the_same_figures():
    made = plan(SMALL, 64, "h100", 8192, 2**21, 1e12)
    told = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert 0 < told["mfu"] < 1
    assert told["step_seconds"] == pytest.approx(sum(told["step_seconds_by_part"].values()))
    assert told["memory_per_rank_bytes"] == pytest.approx(sum(told["memory_per_rank_bytes_by_part"].values()))
    assert told["cost"]["gpu_hours"] == pytest.approx(64 * 24 * told["days"])
    assert f"MFU {100 * told['mfu']:.1f}%" in made.table()
    assert f"second best {made.second.layout}" in made.table()


def test_fp8_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="a100 has no fp8"):
        plan(SMALL, 8, "a100", 8192, 2**20, 1e9, software=Software("fp8"))
