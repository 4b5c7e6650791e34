import subprocess
import sys

import pytest

from mmssl.training.memory import keep_freed_memory

_FAULTS = """
import resource, sys, torch
from mmssl.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(40):  # small pieces settle between the large ones first
    torch.ones(2**24).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24).sum()  # 64 MiB, 16384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted under Linux")
def test_freed_memory_is_used_again():
    if not keep_freed_memory():
        pytest.skip("not glibc, which alone can be told")
    assert page_faults("keep") < page_faults("default") / 2
