"""Fleets against closed forms that NumPy alone computes: round times, staleness, bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedmq.cli import cli
from fedmq.simulation.fleet import page
from fedmq.simulation.fleet.distributions import parse
from fedmq.simulation.fleet.dropout import parse_dropout
from fedmq.simulation.fleet.learners import expected_sizes
from fedmq.simulation.fleet.links import parse_link
from fedmq.simulation.fleet.plan import Plan
from fedmq.simulation.fleet.run import simulate
from fedmq_coordinator.core.settings import RunSettings
from fedmq_protocol.codecs import CodecSpec

AT_ONCE = (parse_link("up=100Gbit down=100Gbit latency=1ms"),)


def settings(**fields: object) -> RunSettings:
    usual: dict[str, object] = {"selection": {"deadline_factor": 0, "round_timeout_s": 100_000}}
    return RunSettings.model_validate(usual | {"federated_evaluation": False} | fields)


def test_a_synchronous_round_takes_as_long_as_the_slowest_device() -> None:
    plan = Plan(
        30,
        settings(rounds=60),
        compute=parse("constant(100)"),
        jitter=parse("lognormal(1, 0.5)"),
        network=AT_ONCE,
        seed=3,
    )
    found = simulate(plan, "sync")
    times = np.diff([version.at_s for version in found.versions])
    slowest = 100 * np.exp(0.5 * np.random.default_rng(0).standard_normal((20_000, 30))).max(axis=1)
    assert len(times) == 60
    assert found.counted == 60 * 30
    # the mean of 60 maxima, each with the spread of one
    assert times.mean() == pytest.approx(slowest.mean(), abs=3 * slowest.std() / np.sqrt(60) + 1.0)
    mean_s = 100 * np.exp(0.125)
    assert found.utilisation == pytest.approx(mean_s / times.mean(), rel=0.05)


def test_an_update_of_fedasync_is_as_old_as_there_are_others_under_way() -> None:
    plan = Plan(
        20,
        settings(rounds=600, strategy={"max_staleness": 1_000}),
        compute=parse("constant(100)"),
        jitter=parse("exponential(1)"),
        network=AT_ONCE,
    )
    found = simulate(plan, "fedasync")
    # Memoryless: while one device trains, each of the 19 others publishes once in the mean; no device is ever idle.
    assert found.mean_staleness == pytest.approx(19, rel=0.1)
    assert found.virtual_s == pytest.approx(600 * 100 / 20, rel=0.15)


def test_bytes_are_updates_times_their_size() -> None:
    spec = CodecSpec("topk-log4", 0.02)
    plan = Plan(25, settings(rounds=12), network=AT_ONCE, parameters=200_000)
    found = simulate(plan, "sync")
    size = expected_sizes(200_000, up=spec, down=CodecSpec("topk-log4", 0.03), snapshot="int8")
    assert found.counted == 12 * 25
    around = found.up_bytes / found.counted - size.update
    assert 200 < around < 700, "topic, header and signature"
    # every device hears of 12 versions, inline, and of the first as a snapshot
    down = found.down_bytes / 25 - size.snapshot
    assert down / 12 == pytest.approx(size.delta, rel=0.4)


def test_one_seed_is_one_fleet() -> None:
    plan = Plan(
        15,
        settings(rounds=6),
        network=(parse_link("0.5*wifi"), parse_link("0.5*ltem")),
        dropout=parse_dropout("up=5min down=1min training=0.1"),
        task="iris",
        seed=9,
    )
    one, other = (simulate(plan, "fedbuff").plain() for _ in range(2))
    one.pop("wall_s")
    other.pop("wall_s")
    assert one == other
    assert one["cut_short"] > 0


def test_digits_are_learned_and_told(tmp_path: Path) -> None:
    plan = Plan(20, settings(rounds=40, target=0.85), task="digits", alpha=0.5, seed=1)
    modes = [simulate(plan, mode) for mode in ("sync", "fedbuff")]
    sync = modes[0]
    assert sync.target_s is not None
    assert sync.state == "finished"
    assert sync.versions[-1].accuracy is not None
    assert sync.versions[-1].accuracy >= 0.85
    path = page.write(plan, modes, tmp_path)
    html = path.read_text(encoding="utf-8")
    assert html.count("<svg") == 3
    assert "fedbuff" in html
    figures = json.loads((tmp_path / "fleet.json").read_text(encoding="utf-8"))
    assert figures["modes"][0]["counted"] == sync.counted
    assert "to 85%" in page.text(modes)


def test_a_run_that_does_not_end_says_what_it_waits_for() -> None:
    found = simulate(Plan(1, settings(rounds=2), most_s=3_600.0), "sync")
    assert (found.state, found.counted) == ("active", 0)
    assert "min_available_devices" in page.text([found])


def test_the_command() -> None:
    command = ["simulate", "fleet", "--devices", "12", "--versions", "3", "--mode", "sync,fedasync", "--json"]
    done = CliRunner().invoke(cli, [*command, "--set", "selection.fraction_train=0.5"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert [mode["state"] for mode in figures["modes"]] == ["finished", "finished"]
    assert figures["modes"][0]["counted"] == 3 * 6
    assert "mode" not in figures["plan"]["settings"], "each column has its own"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--mode", "later"],
        ["--compute", "fast"],
        ["--network", "string"],
        ["--network", "0.8.1*wifi"],
        ["--target", "0.9"],
        ["--task", "iris", "--alpha", "nan"],
        ["--most", "1h"],
        ["--set", "mode=sync"],
        ["--set", "run.rounds=3"],
        ["--devices", "1"],
        ["--out", "/proc/fleet"],
    ],
)
def test_a_mistake_is_one_line(wrong: list[str]) -> None:
    done = CliRunner().invoke(cli, ["simulate", "fleet", *wrong])
    assert "should not have happened" not in done.output
    assert done.exit_code != 0
