"""Collectives and times that are read from a compiled program are those that were put into it."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from jclip.config import MeshConfig
from jclip.hlo import Collective, Traffic, collectives, traffic
from jclip.hlo_time import EXPONENTIAL, estimated_cycles
from jclip.sharding import make_mesh

EVERYWHERE = PartitionSpec(("data", "fsdp"))


def compiled_text(f: object) -> str:
    """Text of the compiled program of f: f32 [4, 6] -> any, mapped over 8 devices."""
    mapped = jax.shard_map(f, mesh=make_mesh(MeshConfig()), in_specs=EVERYWHERE, out_specs=EVERYWHERE)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((32, 6), jnp.float32)).compile().as_text()


AXES = ("data", "fsdp")
SUM = partial(jax.lax.psum, axis_name=AXES)
GATHER = partial(jax.lax.all_gather, axis_name=AXES, tiled=True)


def rotate(x: jax.Array) -> jax.Array:
    return jax.lax.ppermute(x, AXES, [(i, (i + 1) % 8) for i in range(8)])


def rotate_five_times(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 5, lambda _, y: jnp.sin(rotate(y)), x)


def nested(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.cos(rotate_five_times(y)), x)


@pytest.mark.parametrize(
    ("f", "want"),
    [
        (jnp.sin, {}),
        (lambda x: x + SUM(x.astype(jnp.bfloat16).astype(jnp.float32)), {"all-reduce": Traffic(1, {"f32": 4 * 6 * 4})}),
        (lambda x: x + GATHER(x).sum(), {"all-gather": Traffic(1, {"f32": 32 * 6 * 4})}),
        (lambda x: jax.lax.psum_scatter(GATHER(x), AXES, tiled=True), {"reduce-scatter": Traffic(1, {"f32": 4 * 6 * 4})}),
        (rotate, {"collective-permute": Traffic(1, {"f32": 4 * 6 * 4})}),
        (rotate_five_times, {"collective-permute": Traffic(5, {"f32": 5 * 4 * 6 * 4})}),
        (nested, {"collective-permute": Traffic(15, {"f32": 15 * 4 * 6 * 4})}),
    ],
)
def test_collectives_are_counted_with_the_loops_they_stand_in(f: object, want: dict[str, Traffic]) -> None:
    found = traffic(collectives(compiled_text(f)))
    assert want.items() <= found.items()
    assert bool(want) or not found


def test_the_loops_and_halves_of_a_tpu_program_are_understood() -> None:
    hlo = """HloModule step

%condition.1 (p: (s32[], bf16[8,64])) -> pred[] {
  %p = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body.1 (p: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %all-gather-start.2 = (bf16[1,64]{1,0}, bf16[8,64]{1,0}, u32[]{:S(2)}) all-gather-start(%share), replica_groups={}
  %all-gather-done.2 = bf16[8,64]{1,0} all-gather-done(%all-gather-start.2)
  %fusion.3 = bf16[1,64]{1,0} fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter.4
}

%all-reduce-scatter.4 (input: bf16[8,64]) -> bf16[1,64] {
  %all-reduce.9 = bf16[8,64]{1,0} all-reduce(%input), to_apply=%add
  ROOT %dynamic-slice = bf16[1,64]{1,0} dynamic-slice(%all-reduce.9, %index)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %while.1 = (s32[], bf16[8,64]) while(%init), condition=%condition.1, body=%body.1
  %all-reduce.1 = (f32[10]{0}, f32[]) all-reduce(%a, %b), to_apply=%add
}
"""
    assert traffic(collectives(hlo)) == {
        "all-gather": Traffic(12, {"bf16": 12 * 8 * 64 * 2}),
        "all-reduce": Traffic(1, {"f32": 44}),
        "reduce-scatter": Traffic(12, {"bf16": 12 * 64 * 2}),
    }


def test_a_collective_that_runs_in_pieces_beside_computing_counts_once() -> None:
    """A TPU fuses the next piece of it into each of several computations, and each piece reads as the whole collective."""

    def piece(chain: int) -> str:
        return (
            f"%piece{chain} (x: bf16[1,64]) -> bf16[8,64] {{\n  %p = bf16[8,64] all-gather(%x), channel_id=1, "
            f'replica_groups={{{{0,1}}}}, frontend_attributes={{chain_id="{chain}"}}\n}}\n'
        )

    hlo = f"""HloModule step

{piece(3)}
{piece(4)}
%body (p: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {{
  %async-collective-start.2 = bf16[8,64] fusion(%x), kind=kCustom, calls=%piece4
  %fusion.1 = bf16[8,64] fusion(%x), kind=kCustom, calls=%piece3
  %async-collective-done.2 = bf16[8,64] fusion(%x), kind=kCustom, calls=%piece4
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %async-collective-start.1 = bf16[8,64] fusion(%x), kind=kCustom, calls=%piece3
  %while.1 = (s32[], bf16[8,64]) while(%init), condition=%c, body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
  %async-collective-done.1 = bf16[8,64] fusion(%x), kind=kCustom, calls=%piece3
}}
"""
    assert traffic(collectives(hlo)) == {"all-gather": Traffic(6, {"bf16": 6 * 8 * 64 * 2})}


@pytest.mark.parametrize(
    ("groups", "want"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=1] {'axis_0','axis_1'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}", (0, 2, 4, 6)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,2,2]T(1,0,2)) {'axis_0'}", (0, 4, 2, 6)),
        ("replica_groups={}", ()),
    ],
)
def test_the_devices_of_a_collective_are_read_in_every_notation(groups: str, want: tuple[int, ...]) -> None:
    hlo = f"ENTRY %main () -> f32[4] {{\n  %a = f32[4] all-reduce(%x), channel_id=1, {groups}, to_apply=%add\n}}\n"
    assert collectives(hlo) == [Collective("all-reduce", {"f32": 16}, 1, want)]


def test_results_of_several_arrays_are_added_up_by_type() -> None:
    hlo = """HloModule step

ENTRY %main (a: f32[10], b: bf16[20]) -> f32[80] {
  %s = ((f32[10]{0:T(128)}, bf16[20]{0}), (f32[80]{0:T(128)}, bf16[160]{0})) all-gather-start(%a, %b), dimensions={0}
  %d = (f32[80]{0}, bf16[160]{0}) all-gather-done(%s)
}
"""
    assert traffic(collectives(hlo)) == {"all-gather": Traffic(1, {"f32": 4 * 80, "bf16": 2 * 160})}


def test_estimated_cycles_are_summed_by_part_with_the_loops_they_stand_in() -> None:
    hlo = """HloModule step

%condition.1 (p: (s32[], bf16[8,64])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%inside (x: bf16[8,64]) -> bf16[8,64] {
  %never = bf16[8,64] add(%x, %x), backend_config={"estimated_cycles":"1000000"}
}

%body.1 (p: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %a = bf16[8] fusion(%x), calls=%inside, metadata={op_name="jit(train_step)/jvp(MultiTower)/image/Block/attn/q/dot_general"}, backend_config={"estimated_cycles":"100"}
  %k = bf16[8] custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(train_step)/jvp(MultiTower)/image/Block/attn/pallas_call"}, backend_config={"cost_estimate":{"flops":"2000","transcendentals":"2048","bytes_accessed":"30"}}
  %m = bf16[8] fusion(%x), calls=%inside, metadata={op_name="jit(train_step)/transpose(jvp(MultiTower))/image/Block/mlp/fc1/mul"}, backend_config={"estimated_cycles":"7"}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %while.1 = (s32[], bf16[8,64]) while(%init), condition=%condition.1, body=%body.1
  %o = f32[4] fusion(%x), calls=%inside, metadata={op_name="jit(train_step)/add"}, backend_config={"estimated_cycles":"5"}
  %l = f32[4] fusion(%x), calls=%inside, metadata={op_name="jit(train_step)/transpose(jvp())/shard_map/dot_general"}, backend_config={"estimated_cycles":"3"}
  %c = f32[4] copy(%x), backend_config={"estimated_cycles":"2"}
}
"""  # noqa: E501
    # A kernel: 2,000 operations at 1,000 a second are 2 s, its 30 bytes at 20 a second 1.5 s; at 10 cycles a second 20 cycles.
    want = {
        "attention": 12 * (100 + 20 + EXPONENTIAL * 2048),
        "MLP": 12 * 7,
        "optimizer": 5,
        "loss": 3,
        "layout and transfers": 2,
    }
    assert estimated_cycles(hlo, flops=1000, bandwidth=20, clock=10) == want
    assert estimated_cycles("ENTRY %main () -> f32[] {\n}\n", flops=1, bandwidth=1, clock=1) == {}


BRANCHES = """HloModule step
%cheap (x: f32[8]) -> f32[8] {
  %a = f32[8] fusion(%x), calls=%f, metadata={op_name="jvp/attn"}, backend_config={"estimated_cycles":"10"}
  %b = f32[8] all-reduce(%a), replica_groups={{0,1}}
}
%dear (x: f32[8]) -> f32[8] {
  %c = f32[8] fusion(%x), calls=%f, metadata={op_name="jvp/attn"}, backend_config={"estimated_cycles":"30"}
  %d = f32[16] all-reduce(%c), replica_groups={{0,1}}
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %e = f32[8] conditional(%p, %x, %x), CHOICE
}
"""


@pytest.mark.parametrize("choice", ["branch_computations={%dear, %cheap}", "true_computation=%cheap, false_computation=%dear"])
def test_of_branches_the_cheaper_one_counts(choice: str) -> None:
    hlo = BRANCHES.replace("CHOICE", choice)
    assert estimated_cycles(hlo, flops=1.0, bandwidth=1.0, clock=1.0) == {"attention": 10}
    assert traffic(collectives(hlo)) == {"all-reduce": Traffic(1, {"f32": 32})}
