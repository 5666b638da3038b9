"""Two real processes that judge five images come to what one process comes to, to the bit."""

import json
from pathlib import Path

import pytest

from tests import processes
from tests.downstream.detection.judged_guesses import NUM_IMAGES, judged
from tests.tiny_coco import needs_pycocotools, write_split

pytestmark = [pytest.mark.distributed, needs_pycocotools]


def test_an_odd_number_of_images_is_judged_as_by_one_rank(tmp_path: Path) -> None:
    write_split(tmp_path, "val", NUM_IMAGES)
    alone = judged(tmp_path)
    assert all(0 < alone[name] < 1 for name in ("box_ap", "mask_ap", "box_ap50"))
    done = processes.run(["-m", "tests.downstream.detection.judged_guesses", str(tmp_path)], processes=2)
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("SCORES ")]
    assert json.loads(told.removeprefix("SCORES ")) == [alone, alone]
