"""The search for what fits, and for the fastest of it."""

import pytest

from configs.schema import TrainingConfig
from trainer.planning import search, variants
from trainer.planning.variants import Variant, Variants

HBM = 10**9
KEPT = {"none": 10, "attention": 4, "block": 1}
TIME = {"none": 1.0, "attention": 1.1, "block": 1.3}


@pytest.mark.parametrize("largest", [0, 1, 2, 7, 8, 63, 100, 1000])
@pytest.mark.parametrize("start", [1, 8])
@pytest.mark.parametrize("curve", [1.0, 0.9, 1.1])
@pytest.mark.parametrize("is_told", [True, False])
def test_the_largest_size_fits_and_one_more_does_not(largest, start, curve, is_told):
    tried = {}

    def compiled(size):
        # What fits grows as the compiler's peaks do: almost in proportion.
        tried[size] = size <= largest
        share = (size / max(largest, 1)) ** curve
        peak = int(0.3 * HBM + 0.69 * HBM * share)
        known = peak if tried[size] or is_told else 0
        return {"fits": tried[size], "peak_bytes": known}

    sizes = range(1, 4097)
    assert search.largest_that_fits(compiled, sizes, start, HBM) == largest
    assert tried[largest + 1] is False
    assert not largest or tried[largest]
    assert len(tried) <= (13 if is_told else 28)


class Compiler:
    """Stands for lowering and compiler: bytes and seconds by formulas.

    A layer keeps 10 MB of each sequence with "none", 4 with "attention", 1 with
    "block"; the recomputation costs 10 % and 30 % of the time.
    """

    def __init__(self, hbm=HBM, code=20, layers=12, **options):
        self.hbm, self.code, self.lowered = hbm, code * 10**6, []
        self.compiled = []
        self.variants = Variants(self.lower, self.compile, layers, hbm, **options)

    def lower(self, *, num_layers, **variant):
        self.lowered.append((num_layers, Variant(**variant)))
        hlo = str(len(self.lowered) - 1).encode()
        return hlo, {"parameter_count": num_layers * 10**6}

    def compile(self, hlo, memory_only):
        num_layers, variant = self.lowered[int(hlo)]
        self.compiled.append((num_layers, variant, memory_only))
        size, steps, remat = variant
        sizes = {
            "argument_bytes": 4 * 10**6 * num_layers,
            "temporary_bytes": (50 + num_layers * size * KEPT[remat]) * 10**6,
        }
        peak = sum(sizes.values())
        if not memory_only:
            sizes["generated_code_bytes"] = self.code
            peak += self.code
        if peak > self.hbm:
            return {"fits": False, "peak_bytes": peak, "message": "too large"}
        seconds = steps * (0.1 + num_layers * size * TIME[remat])
        time = {"seconds_low": seconds, "seconds_high": seconds}
        return {
            "fits": True,
            "message": "",
            **sizes,
            "peak_bytes": peak,
            "compile_seconds": 1.0,
            "step_time": None if memory_only else time,
        }


@pytest.mark.parametrize("code", [20, 300])
def test_the_program_counts_for_the_largest_microbatch(code):
    compiler = Compiler(code=code)
    start = Variant(1, 1, "none")
    largest = search.largest_microbatch(compiler.variants, start, HBM)
    # 1,000 MB, without 48 of weights, 50, and the program: 120 a sequence.
    assert largest == (902 - code) // 120
    # Whole programs are compiled only at the end.
    whole = {
        v.microbatch_size for _, v, memory_only in compiler.compiled if not memory_only
    }
    assert min(whole) == largest
    assert max(whole) <= largest + 3


def test_the_search_ends_where_everything_fits():
    compiler = Compiler(hbm=10**13)
    start = Variant(1, 1, "none")
    largest = search.largest_microbatch(compiler.variants, start, 10**13)
    assert largest == search.LARGEST_MICROBATCH


def test_tuning_takes_more_recomputation_only_for_a_larger_microbatch():
    compiler = Compiler()
    ranked = search.tune(compiler.variants, share=64, start=8, hbm_bytes=HBM)
    chosen, result = ranked[0]
    # 7.35 sequences fit with "none", 18 with "attention", 73 with "block".
    assert chosen == Variant(4, 16, "none")
    assert result["fits"]
    seconds = [each["step_time"]["seconds_high"] for _, each in ranked]
    assert seconds == sorted(seconds)
    assert {each.remat for each, _ in ranked} == {"none", "attention", "block"}
    assert len(ranked) == 4
    for _, variant, memory_only in compiler.compiled:
        assert variant.microbatch_size * variant.accumulation_steps == 64
        assert memory_only or variant in [each for each, _ in ranked]


def test_tuning_takes_recomputation_where_nothing_else_fits():
    compiler = Compiler(hbm=150 * 10**6)
    ranked = search.tune(compiler.variants, share=4, start=4, hbm_bytes=150 * 10**6)
    assert [each.remat for each, _ in ranked] == ["block", "block"]
    assert ranked[0][0].microbatch_size == 2
    nothing = Compiler(hbm=100 * 10**6)
    assert search.tune(nothing.variants, 4, 4, 100 * 10**6) == []


def test_auto_takes_the_first_policy_that_fits():
    settings = TrainingConfig(remat="auto", microbatch_size=16)
    variant, result = search.first_that_fits(Compiler().variants, settings, 1)
    assert (variant.remat, result["fits"]) == ("attention", True)
    settings.microbatch_size = 500
    variant, result = search.first_that_fits(Compiler().variants, settings, 1)
    assert (variant.remat, result["fits"]) == ("block", False)


def test_a_deep_model_is_compiled_by_few_layers_until_the_end(monkeypatch):
    memory = 10**12
    monkeypatch.setattr(variants, "system_memory", lambda: memory)
    variant = Variant(1, 4, "block")
    whole = Compiler(layers=48).variants.whole(variant)
    compiler = Compiler(layers=48)
    estimate = compiler.variants.estimate(variant)
    assert max(layers for layers, *_ in compiler.compiled) == 10
    for name in ("argument_bytes", "temporary_bytes", "peak_bytes", "step_time"):
        assert estimate[name] == pytest.approx(whole[name]), name
    assert estimate["parameter_count"] == 48 * 10**6
    assert estimate["extrapolated_from"] == [6, 10]
    assert "extrapolated_from" not in whole
    # This machine's memory decides whether the chosen one is compiled whole.
    memory = 48 * 10**6 * 4 * 3
    assert compiler.variants.whole(variant)["extrapolated_from"] == [6, 10]
    assert max(layers for layers, *_ in compiler.compiled) == 10


def test_layers_that_differ_are_compiled_all(monkeypatch):
    monkeypatch.setattr(variants, "system_memory", lambda: 1)
    compiler = Compiler(layers=48, layers_are_alike=False)
    assert "extrapolated_from" not in compiler.variants.estimate(Variant(1, 4, "none"))


def test_a_deep_model_that_does_not_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(variants, "system_memory", lambda: 10**12)
    result = Compiler(layers=48).variants.whole(Variant(4, 1, "none"))
    assert not result["fits"]
    assert result["message"] == "Step and program need 2.01 GiB of 0.93 GiB."
