"""``mmulab record --host`` itself on a machine with KVM: QEMU, which sees this one's files, read-only.

The machine has two CPUs, so that a shell can look on and end what records.
"""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmulab.conform.recording import read_lines
from mmulab.record import cpio
from mmulab.record.build import compiled_vmm
from mmulab.record.kernel_files import KernelFiles, from_build
from mmulab.record.tools import call, find_tool
from tests.record.test_session import real_package, without_kernel

BUSYBOX = Path("/usr/bin/busybox")
NAMES = ("tdp1/memslot-64", "nested48/nested-64-l2-32")
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "kvm_amd")
PARAMETERS = {"kvm": "tdp_mmu=1", "kvm_amd": "npt=1"}

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
{loads}
nine() {{ mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,$3 $1 $2; }}
nine root /root cache=loose,ro
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs dev /root/dev
mount -t tracefs tracefs /root/sys/kernel/tracing
mount -t tmpfs tmpfs /root/mnt
mkdir /root/mnt/share /root/mnt/tmp
nine share /root/mnt/share access=any
chroot /root /bin/sh /mnt/share/script
poweroff -f
"""

SCRIPT = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt XDG_CACHE_HOME=/mnt/share/cache TMPDIR=/mnt/tmp
export PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
T=/sys/kernel/tracing
cd /mnt/share

record() {{  # in the background SIGINT is ignored
    out=$1; shift
    exec {python} -c 'import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from mmulab.cli import main
main.main()' record --host "$@" --out $out > $out.said 2>&1
}}

state() {{
    cat /sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs
    cat /proc/sys/vm/compact_unevictable_allowed /proc/sys/kernel/sched_rt_runtime_us
    grep . /sys/module/kvm/parameters/nx_huge_pages*
    cat $T/kprobe_events $T/tracing_on $T/trace_clock $T/buffer_size_kb
    ls $T/instances $T/events | grep -i mmulab
}}

stopped() {{  # OUT SIGNAL WHOM
    ( record $1 {many} ) & runner=$!
    until grep -q "up in" $1.said && [ "$(cat $T/instances/mmulab-*/tracing_on)" = 1 ]; do
        [ -e /proc/$runner ] || break
    done 2>/dev/null
    guard=$(ls $T/instances); guard=${{guard#mmulab-}}
    whom=$runner
    [ $3 = vmm ] && read whom < /proc/$guard/task/$guard/children
    kill -$2 $whom
    wait $runner; echo $? > $1.code
    while [ -n "$guard" ] && [ -e /proc/$guard ]; do :; done
    state > $1.state
}}

echo 'p:mine do_exit' > $T/kprobe_events
echo 1 > $T/events/kprobes/mine/enable
state > before
( record whole {scenarios} {other} ); echo $? > whole.code
state > whole.state
stopped terminated TERM python
stopped killed KILL python
stopped vmm KILL vmm
ls -A /mnt/tmp > left
"""


def machine_kernel(top: Path) -> KernelFiles:
    """Unpack all of a kernel, of which the recorder's cache has only KVM."""
    package = real_package("6.1.192")
    if not BUSYBOX.exists():
        pytest.skip(f"record --host in QEMU: there is no {BUSYBOX}; apt-get install busybox-static")
    if "virtio-9p-pci" not in call("QEMU", [find_tool("qemu-system-x86_64"), "-device", "help"]):
        pytest.skip("record --host in QEMU: it has no device virtio-9p-pci")
    call("the kernel", [find_tool("dpkg-deb"), "-x", str(package), str(top)])
    kernel = from_build(next(top.glob("boot/vmlinuz-*")), top / "lib/modules")
    for name in MODULES:
        if name not in kernel.modules:
            pytest.skip(f"record --host in QEMU: {package.name} has no module {name}")
    return kernel


def initramfs(kernel: KernelFiles) -> bytes:
    modules = {module.name: module.data for name in MODULES for module in kernel.needed(name)}
    loads = "\n".join(f"insmod /lib/{name}.ko {PARAMETERS.get(name, '')}" for name in modules)
    entries = [
        *map(cpio.folder, ("dev", "bin", "lib", "root")),
        cpio.console(),
        cpio.file("bin/busybox", BUSYBOX.read_bytes(), 0o755),
        *(cpio.file(f"lib/{name}.ko", data) for name, data in modules.items()),
        cpio.file("init", INIT.format(loads=loads).encode(), 0o755),
    ]
    return gzip.compress(cpio.archive(entries), 1)


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """What the machine left: what each command said, its code, and the machine's state after it."""
    top = tmp_path_factory.mktemp("machine")
    kernel = machine_kernel(top / "kernel")
    made = top / "share"
    made.mkdir()
    data = root / "data/conformance/6.1.192"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(made / "cache"))
        compiled_vmm()
    (made / "script").write_text(
        SCRIPT.format(
            root=shlex.quote(str(root)),
            python=shlex.quote(sys.executable),
            scenarios=" ".join(shlex.quote(f"{data / name}.jsonl.xz") for name in NAMES),
            many=" ".join(shlex.quote(str(path)) for path in sorted((data / "tdp1").iterdir())),
            other=shlex.quote(str(data / "sh/mmio-pae.jsonl.xz")),
        )
    )
    (top / "initramfs").write_bytes(initramfs(kernel))
    nine = "local,security_model=none,multidevs=remap"
    console = top / "console"
    machine = [
        find_tool("qemu-system-x86_64"),
        *("-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-smp", "2", "-m", "3072"),
        *("-cpu", "max,la57=off", "-serial", f"file:{console}"),
        *("-kernel", str(kernel.image), "-initrd", str(top / "initramfs")),
        *("-append", "console=ttyS0 loglevel=4 mitigations=off nokaslr panic=-1"),
        *("-fsdev", f"{nine},id=root,path=/,readonly=on", "-fsdev", f"{nine},id=share,path={made}"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-device", "virtio-9p-pci,fsdev=share,mount_tag=share"),
    ]
    try:
        subprocess.run(machine, check=True, timeout=800)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the machine hangs:\n{_left_behind(made)}\nconsole: {_tail(console)}")
    assert (made / "left").exists(), _tail(console)
    return made


def _tail(file: Path) -> str:
    return file.read_text(errors="replace")[-2000:]


def _left_behind(share: Path) -> str:
    """Return how far the script came: each file of it, and what the recorder said last."""
    files = [file for file in sorted(share.iterdir()) if file.is_file()]
    return "\n".join(f"{file.name}: {_tail(file)[-500:]!r}" for file in files)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.own_kvm,
    pytest.mark.skipif(os.geteuid() != 0, reason="record --host in QEMU: 9p gives root's files to root only"),
]


def test_recordings_equal_those_of_a_booted_host(share: Path, root: Path) -> None:
    for name in NAMES:
        found = read_lines(share / "whole" / f"{name.partition('/')[2]}.jsonl")
        wanted = read_lines(root / f"data/conformance/6.1.192/{name}.jsonl.xz")
        assert list(without_kernel(found)) == list(without_kernel(wanted))


def test_a_scenario_of_another_host_is_left_out_by_name(share: Path) -> None:
    said = (share / "whole.said").read_text()
    assert "mmio-pae: left out: this machine's tables have 4 levels, not 5; use --deb" in said
    assert (share / "whole.code").read_text() == "1\n"
    assert not (share / "whole/mmio-pae.jsonl").exists()


@pytest.mark.parametrize(("name", "code"), [("whole", 1), ("terminated", 143), ("killed", 137), ("vmm", 1)])
def test_the_machine_is_left_as_it_was(share: Path, name: str, code: int) -> None:
    assert (share / f"{name}.code").read_text() == f"{code}\n"
    state = (share / f"{name}.state").read_text()
    assert "p:kprobes/mine do_exit" in state
    assert "mmulab" not in state
    assert state == (share / "before").read_text()


def test_a_vmm_that_was_killed_is_said_and_the_next_scenario_runs(share: Path) -> None:
    said = (share / "vmm.said").read_text()
    assert "not recorded: the VMM ended with exit code 137, and the kernel said nothing of it" in said
    assert "9 of 10 scenarios recorded whole" in said


def test_no_folder_of_a_run_is_left(share: Path) -> None:
    assert (share / "left").read_text() == ""
