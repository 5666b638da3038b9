"""Batches that are copied while the device computes; in a process of its own, as other tests hide the GPU."""

import json

import pytest

from tests import processes

pytestmark = pytest.mark.gpu

COPIES = """
import json, time, torch
from dmt_ds.data.batch import Batch
from dmt_ds.engine.device_copy import DeviceCopy

def batch(number):
    crop, rows = torch.full((64, 3, 224, 224), number, dtype=torch.uint8), torch.full((64,), number)
    return Batch((crop,), rows, rows, rows).pin_memory()

made, found = [batch(number) for number in range(40)], []
to_device, weights = DeviceCopy(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
to_device(made[0]), weights @ weights  # libraries are loaded
torch.cuda.synchronize()
torch.cuda.set_sync_debug_mode("error")  # the host must not wait
for one in made:
    copy = to_device(one)
    for _ in range(20):
        weights @ weights  # so that the next copies come long before this one is read
    found.append(torch.stack([copy.images.amin(), copy.images.amax(), copy.seeds.amin(), copy.labels.amax()]))
    del copy  # its memory is free for the next
torch.cuda.set_sync_debug_mode("default")
facts = {"each": torch.stack(found).tolist()}

torch.cuda.synchronize()
torch.cuda._sleep(2_000_000_000)  # a second of the present stream
to_device(made[1])
time.sleep(0.3)
facts["copied while the device is busy"] = to_device._stream.query() and not torch.cuda.current_stream().query()

torch.cuda.synchronize()
with torch.cuda.stream(to_device._stream):
    torch.cuda._sleep(500_000_000)
late = to_device(made[7]).images
facts["late"] = [late.amin().item(), late.amax().item()]
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(cuda):
    return json.loads(processes.run(["-c", COPIES], **cuda).stdout.splitlines()[-1])


def test_each_batch_is_read_whole_though_the_next_ones_are_copied_meanwhile(facts):
    assert facts["each"] == [[number] * 4 for number in range(40)]


def test_a_batch_is_copied_while_the_device_is_busy(facts):
    assert facts["copied while the device is busy"]


def test_a_copy_that_comes_late_is_waited_for(facts):
    assert facts["late"] == [7, 7]
