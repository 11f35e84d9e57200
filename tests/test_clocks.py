# SPDX-License-Identifier: Apache-2.0
"""Problems by name, clocks, and turns: what benchmarks and `jax-na profile` share."""

import itertools
from dataclasses import replace

import pytest

from jax_na.tools import cli, clock, problems, profiler
from jax_na.tools.clock import Sample
from jax_na.tools.problems import BACKWARD, BOTH, PROBLEMS


class Time:
    """A clock that goes on by what calls take."""

    def __init__(self, *durations):
        self.now, self.durations, self.calls = 0.0, itertools.cycle(durations), 0

    def __call__(self):
        return self.now

    def call(self):
        self.now += next(self.durations)
        self.calls += 1


# Problems


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_problems_are_legal(problem):
    neighborhood = profiler.neighborhood(problem)
    assert neighborhood.axes(problem.spatial)
    assert problem.heads % problem.kv_heads == 0
    assert profiler.flops(problem) <= problem.dense_flops
    both = profiler.flops(replace(problem, direction=BOTH))
    assert both == profiler.flops(problem) + profiler.flops(replace(problem, direction=BACKWARD))


def test_problems_by_pattern():
    names = lambda patterns: [p.name for p in problems.select(patterns)]  # noqa: E731
    assert names("nat-s1-56,nat-s1-56") == ["nat-s1-56"]
    assert names("overhead") == ["tiny-16-w3"]
    assert names("nat-s?-*") == ["nat-s1-56", "nat-s2-28", "nat-s3-14", "nat-s4-7", "nat-s1-56-rpb"]
    assert len(names("core")) == 10
    assert {p.group for p in problems.select("all")} == {"core", "models", "overhead"}
    with pytest.raises(ValueError, match="no problem is called 'nat'"):
        names("core,nat")


def test_a_window_has_one_value_per_axis():
    with pytest.raises(ValueError, match=r"wrong: stride .* for each of 2 axes"):
        problems.problem("wrong", "", (1, 8, 8), (1, 8), 3, stride=(1, 1, 1))


def test_profile_takes_a_problem_by_name(capsys):
    assert cli.main(["profile", "video-8x24x40-s2x4x4", "--dry-run", "--heads", "3", "--stride", "2"]) == 0
    text = capsys.readouterr().out
    assert "batch 1, 8x24x40, kernel 6x12x12, stride 2x2x2, 3 heads of 128, float32" in text


# Clocks


def test_wall_clock_repeats_short_calls():
    fake = Time(1e-3)
    wall = clock.WallClock(fake.call, fake, lambda: fake.now / 4)
    sample = wall.sample()
    assert sample == pytest.approx((1e-3, 5, 0.25))
    assert fake.calls == 1 + 1 + 5  # the estimate, one that warms, and the sample


def test_wall_clock_takes_long_calls_once():
    fake = Time(0.2)
    assert clock.WallClock(fake.call, fake, lambda: 0.0).sample() == pytest.approx((0.2, 1, 0.0))
    assert fake.calls == 2


def test_queue_clock_waits_once_per_sample():
    fake, waits = Time(1e-3), []
    queue = clock.QueueClock(fake.call, waits.append, together=16, now=fake)
    assert queue.estimate == pytest.approx(1e-3 / 16)
    before = len(waits)
    assert queue.sample() == pytest.approx((1e-3 / 16, 50 * 16, 0.0))
    assert len(waits) == before + 1


def test_turns_are_interleaved_and_their_order_changes():
    order = []
    take = lambda name: lambda: order.append(name) or Sample(1.0)  # noqa: E731
    found = clock.in_turns({name: take(name) for name in "abc"}, 6)
    rounds = [tuple(order[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1
    assert {name: len(s) for name, s in found.items()} == {"a": 6, "b": 6, "c": 6}


def test_a_budget_ends_turns():
    fake, ticks = Time(1.0), []

    def take(seconds):
        def sample():
            fake.now += seconds
            return Sample(seconds)

        return sample

    clocks = {"slow": take(5.0), "fast": take(0.5), "broken": lambda: None}
    found = clock.in_turns(clocks, 10, 2.0, ticks.append, fake)
    assert {name: len(s) for name, s in found.items()} == {"slow": 1, "fast": 5, "broken": 0}
    assert len(ticks) == 30


def test_timing():
    timing = clock.Timing(tuple(Sample(float(s)) for s in (4, 1, 2, 3, 5)))
    assert (timing.median, timing.quartiles) == (3.0, (2.0, 4.0))
    assert clock.Timing((Sample(2.0),)).quartiles == (2.0, 2.0)
