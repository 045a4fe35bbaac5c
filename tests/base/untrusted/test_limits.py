from pipeline.base.untrusted import limits


def test_a_container_may_have_less_than_the_machine(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4096 kB\n")
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(limits, "CONTAINER", tmp_path)
    assert limits.available_memory() == 4096 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert limits.available_memory() == 4096 * 1024
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 1000\n")
    assert limits.available_memory() == 2**20 - 600_000 + 1000
    (tmp_path / "memory.current").write_text("2000000\n")
    assert limits.available_memory() == 0
