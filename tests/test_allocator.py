"""What the C library is told about freed memory."""

import platform

from recbole_ilrec.runtime.allocator import keep_freed_memory


def test_glibc_is_told_to_keep_freed_memory_and_others_are_left_alone(monkeypatch):
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
