from pipeline.base.untrusted import limits


def test_a_container_may_have_less_than_the_machine(tmp_path, monkeypatch):
    for name, content in (
        ("MEMINFO", "MemTotal: 9000 kB\nMemAvailable:    4096 kB\n"),
        ("CONTAINER_LIMIT", "max\n"),
    ):
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(limits, name, tmp_path / name)
    assert limits.available_memory() == 4096 * 1024
    (tmp_path / "CONTAINER_LIMIT").write_text("1048576\n")
    assert limits.available_memory() == 2**20
    monkeypatch.setattr(limits, "CONTAINER_LIMIT", tmp_path / "none")
    assert limits.available_memory() == 4096 * 1024
