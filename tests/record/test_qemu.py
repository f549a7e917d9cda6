"""How QEMU is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.record import qemu
from mmulab.record.emulator import Boot
from mmulab.record.host import KernelParameters
from mmulab.record.qemu import QEMU
from mmulab.scenario.scenario import HOST_DEFAULTS


@pytest.mark.parametrize(("bits", "la57"), [(57, "la57=on"), (48, "la57=off")])
def test_the_link_is_memory_and_levels_are_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, la57: str
) -> None:
    monkeypatch.setattr(qemu, "find_tool", lambda name: name)
    (tmp_path / "link").write_bytes(bytes(4096))
    host = KernelParameters.of_header("amd", {**HOST_DEFAULTS, "virt_bits": bits})
    paths = [tmp_path / name for name in ("bzImage", "initramfs", "link", "console")]
    command = QEMU.command(Boot(tmp_path, *paths, "console=ttyS0", host, 1040))
    assert command[command.index("-append") + 1] == "console=ttyS0"
    assert command[command.index("-cpu") + 1] == f"max,{la57}"
    assert (
        f"memory-backend-file,id=link,size=4096,mem-path={tmp_path / 'link'},share=on"
        == command[command.index("-object") + 1]
    )
    assert QEMU.obstacle(host, HOST_DEFAULTS) == ""
