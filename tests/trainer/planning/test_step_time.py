"""The seconds of a step by the TPU compiler's own cycles."""
# ruff: noqa: E501 (HLO has long lines)

import pytest
import tensorflow as tf

from configs import tpu
from tests.trainer.planning.test_planner import needs_compiler
from trainer.planning import compilation, step_time

# A loop of four iterations, of a product and of a sum that is overstated.
PROGRAM = """\
HloModule step

%fused_sum (p.1: f32[1000,1000]) -> f32[1000] {
  %p.1 = f32[1000,1000]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduce.1 = f32[1000]{0} reduce(%p.1, %zero), dimensions={0}, to_apply=%add
}

%body (state: (s32[], f32[1000,1000])) -> (s32[], f32[1000,1000]) {
  %state = (s32[], f32[1000,1000]) parameter(0)
  %x = f32[1000,1000]{1,0} get-tuple-element(%state), index=1
  %product = f32[1000,1000]{1,0} convolution(%x, %x), metadata={op_name="step/attention/einsum"}, backend_config={"estimated_cycles":"940000"}
  %sum = f32[1000]{0} fusion(%product), kind=kLoop, calls=%fused_sum, metadata={op_name="gradient_tape/layer_norm/Sum"}, backend_config={"estimated_cycles":"9400000"}
  ROOT %next = (s32[], f32[1000,1000]) tuple(%x, %product)
}

%condition (state.1: (s32[], f32[1000,1000])) -> pred[] {
  %state.1 = (s32[], f32[1000,1000]) parameter(0)
  %index = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(4)
  ROOT %less = pred[] compare(%index, %limit), direction=LT
}

ENTRY %main (p: (s32[], f32[1000,1000])) -> (s32[], f32[1000,1000]) {
  %p = (s32[], f32[1000,1000]) parameter(0)
  %loop = (s32[], f32[1000,1000]) while(%p), condition=%condition, body=%body
  ROOT %all-reduce = (s32[], f32[1000,1000]) all-reduce(%loop), to_apply=%add
}
"""


def test_cycles_are_added_up_through_loops():
    estimate = step_time.estimate(PROGRAM, "v3")
    # A millisecond and ten, four times; the sum cannot take longer than its bytes.
    assert estimate["seconds_high"] == pytest.approx(4 * 11e-3)
    bytes_of_sum = 4 * (1000 * 1000 + 1000)
    sums = bytes_of_sum / (0.85 * 450e9)
    assert estimate["seconds_low"] == pytest.approx(4 * (1e-3 + sums))
    assert estimate["parts"] == pytest.approx(
        {"attention": 4e-3, "layer norms": 4 * sums}
    )


def seconds(function, generation, *specs):
    compiled = tf.function(function, jit_compile=True)
    hlo = compiled.experimental_get_compiler_ir(*specs)(stage="hlo_serialized")
    name = next(name for name in tpu.names() if name.startswith(f"{generation}-"))
    result = compilation.compile_hlo(hlo, tpu.parse(name))
    return result["step_time"]["seconds_high"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v3", "v5e", "v6e"])
def test_a_large_product_runs_near_the_peak(generation):
    size = 8192
    spec = tf.TensorSpec([size, size], tf.bfloat16)
    peak = 2 * size**3 / tpu.GENERATIONS[generation].peak_flops
    assert 0.65 < peak / seconds(lambda x, y: x @ y, generation, spec, spec) < 1.02


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v3", "v5e", "v6e"])
def test_an_elementwise_program_runs_near_the_bandwidth(generation):
    spec = tf.TensorSpec([1 << 26], tf.float32)
    moved = 3 * 4 * (1 << 26)
    bound = moved / tpu.GENERATIONS[generation].bandwidth
    found = seconds(lambda x, y: x * y + 1.0, generation, spec, spec)
    assert 0.7 < bound / found < 1.02
