"""Our reading of PEP 508 and PEP 440 against a second one: the library that pip uses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.requirements import Requirement as TheirRequirement
from packaging.specifiers import SpecifierSet

from fedmq_edge_agent.flashing.errors import FlashError
from fedmq_edge_agent.flashing.platforms import PLATFORMS, PYTHONS
from fedmq_edge_agent.flashing.requirements import holds, parse, satisfies

VARIABLES = ["platform_machine", "sys_platform", "platform_system", "os_name", "implementation_name"]
VALUES = ["aarch64", "x86_64", "armv7l", "linux", "Linux", "win32", "posix", "cpython", "Windows"]

releases = st.lists(st.integers(0, 30), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
operators = st.sampled_from(["==", "!=", "<=", ">=", "<", ">"])
comparisons = st.one_of(
    st.builds(
        lambda variable, sign, value: f"{variable} {sign} '{value}'",
        st.sampled_from(VARIABLES),
        st.sampled_from(["==", "!="]),
        st.sampled_from(VALUES),
    ),
    st.builds(lambda sign, minor: f'python_version {sign} "3.{minor}"', operators, st.integers(7, 15)),
    st.builds(lambda sign, minor: f'"3.{minor}" {sign} python_version', operators, st.integers(7, 15)),
    st.builds(lambda name: f"extra == '{name}'", st.sampled_from(["cli", "dev"])),
    st.builds(lambda value: f"'{value}' in platform_machine", st.sampled_from(["arm", "64", "x86"])),
    st.builds(lambda value: f"sys_platform not in '{value} darwin'", st.sampled_from(VALUES)),
)
markers = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(lambda a, b: f"{a} and {b}", inner, inner),
        st.builds(lambda a, b: f"{a} or {b}", inner, inner),
        inner.map(lambda one: f"({one})"),
    ),
    max_leaves=6,
)


@given(
    marker=markers,
    arch=st.sampled_from(sorted(PLATFORMS)),
    python=st.sampled_from(PYTHONS),
    extra=st.booleans(),
)
def test_markers_hold_where_packaging_says_so(*, marker: str, arch: str, python: str, extra: bool) -> None:
    environment = PLATFORMS[arch].environment(python)
    theirs = Marker(marker).evaluate({**environment, "extra": "cli" if extra else ""})
    assert holds(marker, environment, frozenset({"cli"}) if extra else frozenset()) is theirs


@given(
    version=releases,
    clauses=st.lists(st.tuples(operators, releases), max_size=3),
    local=st.booleans(),
)
def test_versions_satisfy_what_packaging_says(
    *, version: str, clauses: list[tuple[str, str]], local: bool
) -> None:
    # PEP 440 excludes `1.0+cpu` from `> 1.0`, and has it count as 1.0 for the rest.
    clauses = [(sign, wanted) for sign, wanted in clauses if not (local and sign == ">")]
    specifier = ",".join(f"{sign}{wanted}" for sign, wanted in clauses)
    have = f"{version}+cpu" if local else version
    assert satisfies(have, specifier) is SpecifierSet(specifier).contains(have)


@given(version=releases, wanted=st.lists(st.integers(0, 5), min_size=2, max_size=3))
def test_compatible_release_and_prefix(version: str, wanted: list[int]) -> None:
    for specifier in (f"~={'.'.join(map(str, wanted))}", f"=={wanted[0]}.*", f"!={wanted[0]}.{wanted[1]}.*"):
        assert satisfies(version, specifier) is SpecifierSet(specifier).contains(version), specifier


@pytest.mark.parametrize(
    "line",
    [
        "numpy",
        "typing_extensions>=4.10.0",
        "Jinja2 >=3.1.4, <4",
        "cffi>=1.14; platform_python_implementation != 'PyPy'",
        "fedmq[agent,trainer]",
        'setuptools<82; python_version >= "3.12"',
        "sympy (>=1.13.3)",
    ],
)
def test_lines_are_read_as_packaging_reads_them(line: str) -> None:
    ours, theirs = parse(line), TheirRequirement(line)
    assert ours.name == theirs.name.lower().replace("_", "-")
    assert ours.extras == theirs.extras
    assert SpecifierSet(ours.specifier) == theirs.specifier
    assert bool(ours.marker) is (theirs.marker is not None)


@pytest.mark.parametrize(
    "line", ["", "numpy @ https://example.org/numpy.whl", "numpy==", "numpy 2", "-r file", "a b"]
)
def test_what_is_no_requirement_is_refused(line: str) -> None:
    with pytest.raises(FlashError):
        parse(line)


@pytest.mark.parametrize(
    "marker", ["python_version", "os_name == ", "(os_name == 'posix'", "planet == 'earth'", "a b c"]
)
def test_what_is_no_marker_is_refused(marker: str) -> None:
    with pytest.raises(FlashError, match="not understood"):
        holds(marker, PLATFORMS["arm64"].environment("3.11"))
