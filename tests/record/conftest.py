"""What hosts said of scenarios whose recordings are in data, as it came over the link."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from mmulab.record.host import HostFacts
from mmulab.record.link import Kind, Record
from mmulab.record.take import Take
from mmulab.record.work import Work, read_recorded

SAMPLES = {
    "6.1.192-sh-mmio-pae": "conformance/6.1.192/sh/mmio-pae",
    "6.12.117-nested48-nested-large-thp-64": "conformance/6.12.117/nested48/nested-large-thp-64",
    "6.12.117-age-collapse-64": "conformance-more/6.12.117/age/collapse-64",
    "6.12.117-dirtyring-dirtyring-64": "conformance-more/6.12.117/dirtyring/dirtyring-64",
}


class Sample(NamedTuple):
    """A scenario, the recording of it, and what a host said."""

    path: Path
    work: Work
    facts: HostFacts
    take: Take


def load(name: str, root: Path) -> Sample:
    """Read a sample: records with kind and length in front."""
    data = lzma.decompress((root / "tests/record/samples" / f"{name}.xz").read_bytes())
    facts, take, at = HostFacts(), Take(), 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        payload = data[at + 8 : at + 8 + length]
        at += 8 + length
        if kind == Kind.FILE:
            facts.add_file(payload)
        elif kind == Kind.CPUID:
            facts.add_cpuid(payload)
        else:
            take.add(Record(kind, payload))
    path = root / "data" / f"{SAMPLES[name]}.jsonl.xz"
    return Sample(path, read_recorded(path), facts, take)


@pytest.fixture(params=SAMPLES)
def sample(request: pytest.FixtureRequest, root: Path) -> Sample:
    """Each sample."""
    return load(request.param, root)
