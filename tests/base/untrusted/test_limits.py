import pytest

from pipeline.base.untrusted import limits

FREE = 4096 * 1024


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine, in a folder, with a process in the control group `job/step`."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4096 kB\n")
    (tmp_path / "cgroup").write_text("5:cpu,memory:/job/step\n1:name=systemd:/x\n0::/job/step\n")
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "CONTAINER", tmp_path)
    return tmp_path


def write_group(folder, names, limit, used):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 100\n{names[2]} 1000\n")


@pytest.mark.parametrize("group", [".", "job", "job/step"])
@pytest.mark.parametrize(("root", "names"), [(".", limits.V2), ("memory", limits.V1)])
def test_a_control_group_may_have_less_than_the_machine(machine, group, root, names):
    assert limits.available_memory() == FREE
    folder = machine / root / group
    unlimited = "max" if names == limits.V2 else 2**63 - 4096
    for limit, used, expected in (
        (unlimited, 600_000, FREE),
        (2**20, 600_000, 2**20 - 600_000 + 1000),
        (2**20, 2_000_000, 0),
    ):
        write_group(folder, names, limit, used)
        assert limits.available_memory() == expected
    write_group(machine / root / "job/other", names, 0, 0)
    write_group(folder, names, unlimited, 0)
    assert limits.available_memory() == FREE, "the process is not in that group"


def test_a_system_without_control_groups_has_all_that_is_free(machine):
    (machine / "cgroup").unlink()
    assert limits.available_memory() == FREE
